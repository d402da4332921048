"""The interface of search spaces: a define-by-run function that maps a trial and a context to an experiment.

A space asks the trial for its parameters, which have dotted names, and returns the experiment of the context with these
values. The same function is used with Optuna's samplers, recorded parameters and grids. `compose` combines several
spaces.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Protocol, TypeVar

from nas_blockout.experiment import Experiment
from nas_blockout.serialization import near

Choice = TypeVar("Choice", str, int, float, bool)


class Trial(Protocol):
    """The methods of a trial that spaces use; Optuna's trials, `Recorded` and `Extreme` have them."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a number in [low, high]."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Return an integer in [low, high]."""

    def suggest_categorical(self, name: str, choices: Sequence[Choice]) -> Choice:
        """Return one of the choices."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a space starts from: an experiment and the dimensions of its data.

    Args:
        experiment: Experiment of the arm before the search.
        shape: Channels, height and width of an image.
        classes: Number of classes.
    """

    experiment: Experiment
    shape: tuple[int, int, int]
    classes: int


Space = Callable[[Trial, Context], Experiment]


class Recorded:
    """A trial that returns recorded parameters, for replay and tests.

    Attributes:
        asked: Names of the parameters that a space has asked for.

    Raises:
        ValueError: A space asks for a parameter that was not recorded, or whose recorded value is out of range.
    """

    def __init__(self, parameters: Mapping[str, str | int | float | bool]) -> None:
        self.parameters = dict(parameters)
        self.asked: set[str] = set()

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return the recorded number."""
        value = self._recorded(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"{name} must be a number in {low}..{high}, got the recorded {value!r}")
        return float(value)

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Return the recorded integer."""
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
        self.asked.add(name)
        return self.parameters[name]


class TooFew(ValueError):
    """A space needs more nodes or classes than there are; this can only be checked when the data is known."""


class Extreme:
    """A trial at one end of all ranges, to check whether spaces fit an arm without a sampler or a store.

    Args:
        high: Whether to return the upper ends and the last choices, instead of the lower ends and the first choices.

    Raises:
        ValueError: Two spaces ask for the same parameter with different ranges, which Optuna rejects within a trial.
    """

    def __init__(self, *, high: bool) -> None:
        self._high = high
        self._asked: dict[str, tuple[object, ...]] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return one end of the range."""
        self._once(name, low, high, log)
        return high if self._high else low

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Return one end of the range."""
        self._once(name, low, high)
        return high if self._high else low

    def suggest_categorical(self, name: str, choices: Sequence[Choice]) -> Choice:
        """Return the first or the last choice."""
        self._once(name, *choices)
        return choices[-1 if self._high else 0]

    def _once(self, name: str, *distribution: object) -> None:
        if self._asked.setdefault(name, distribution) != distribution:
            raise ValueError(f"two spaces give the parameter {name!r} different ranges: use only one of the two")


def require_fit(spaces: Sequence[Space], context: Context) -> None:
    """Check that spaces can be applied to an arm, by running them at both ends of all ranges.

    Args:
        spaces: Spaces, applied in order.
        context: Experiment and data that the spaces start from.

    Raises:
        ValueError: A space needs another method, backbone or data, or two spaces cannot be combined.
    """
    for high in (False, True):
        compose(spaces)(Extreme(high=high), context)


def compose(spaces: Sequence[Space]) -> Space:
    """Return a space that applies several spaces in order, each to the experiment that the previous one returned."""

    def composed(trial: Trial, context: Context) -> Experiment:
        return reduce(
            lambda experiment, space: space(trial, replace(context, experiment=experiment)), spaces, context.experiment
        )

    return composed
