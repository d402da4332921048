"""What a space is: a define-by-run function from a trial and a context to an experiment.

A space draws its parameters from the trial, under dotted names, and returns the experiment of the context with them in
place. The same function serves Optuna's samplers, replay from recorded parameters and tests. Spaces compose: `compose`
applies several in turn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Protocol, TypeVar

from nas_blockout.experiment import Experiment
from nas_blockout.serialization import near

Choice = TypeVar("Choice", str, int, float, bool)


class Trial(Protocol):
    """What a space may ask of a trial; Optuna's trials have these methods, and so has `Recorded`."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a number in ``low..high``."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Return a whole number in ``low..high``, both included."""

    def suggest_categorical(self, name: str, choices: Sequence[Choice]) -> Choice:
        """Return one of the choices."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a space starts from.

    Args:
        experiment: The experiment of the arm before anything is searched.
        shape: Channels, height and width of an image.
        classes: Number of classes.
    """

    experiment: Experiment
    shape: tuple[int, int, int]
    classes: int


Space = Callable[[Trial, Context], Experiment]


class Recorded:
    """A trial that answers from recorded parameters, as replay and tests need it.

    Raises:
        ValueError: A space asks for a parameter that was not recorded, or whose recorded value lies outside its range.
    """

    def __init__(self, parameters: Mapping[str, str | int | float | bool]) -> None:
        self.parameters = dict(parameters)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return the recorded number."""
        value = self._recorded(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"{name} must be a number in {low}..{high}, got the recorded {value!r}")
        return float(value)

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Return the recorded whole number."""
        value = self._recorded(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name} must be a whole number in {low}..{high}, got the recorded {value!r}")
        return value

    def suggest_categorical(self, name: str, choices: Sequence[Choice]) -> Choice:
        """Return the recorded choice."""
        value = self._recorded(name)
        if value not in choices:
            raise ValueError(f"{name} must be one of {list(choices)}, got the recorded {value!r}")
        return choices[list(choices).index(value)]  # type: ignore[arg-type]  # it is among them

    def _recorded(self, name: str) -> str | int | float | bool:
        if name not in self.parameters:
            raise ValueError(f"parameter {name!r} was not recorded; {near(name, self.parameters)}")
        return self.parameters[name]


def compose(spaces: Sequence[Space]) -> Space:
    """Return the space that applies several in turn, each to the experiment of the one before."""

    def composed(trial: Trial, context: Context) -> Experiment:
        return reduce(
            lambda experiment, space: space(trial, replace(context, experiment=experiment)), spaces, context.experiment
        )

    return composed
