"""The laws of search spaces: what a function from a trial and a context to an experiment must do."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from nas_blockout.experiment import Experiment
from nas_blockout.testing.seeds import SEED, no_global_randomness


class HasExperiment(Protocol):
    """What the laws read of a ``search_spaces.Context``."""

    @property
    def experiment(self) -> Experiment:
        """Experiment of the arm before the search."""


@dataclass(frozen=True, slots=True)
class SpaceCase:
    """One search space under the laws.

    Args:
        space: The function.
        context: What it starts from: a ``search_spaces.Context`` of an arm that it fits.
        proposals: How many are drawn.
    """

    space: Callable[[Any, Any], Experiment]
    context: HasExperiment
    proposals: int = 25


@dataclass(slots=True)
class _Random:
    """A trial whose parameters are drawn, and recorded."""

    generator: random.Random
    values: dict[str, Any] = field(default_factory=dict)
    ranges: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        if not log:
            return float(self._kept(name, self.generator.uniform(low, high), low, high))
        drawn = math.exp(self.generator.uniform(math.log(low), math.log(high)))
        return float(self._kept(name, min(max(drawn, low), high), low, high, log))

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return int(self._kept(name, self.generator.randint(low, high), low, high))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._kept(name, self.generator.choice(choices), *choices)

    def _kept(self, name: str, drawn: Any, *distribution: Any) -> Any:
        assert self.ranges.setdefault(name, distribution) == distribution, f"{name} is asked with two ranges"
        return self.values.setdefault(name, drawn)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A trial that returns what was recorded."""

    values: Mapping[str, Any]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return float(self.values[name])

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return int(self.values[name])

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self.values[name]


@dataclass(frozen=True, slots=True)
class _Extreme:
    """A trial at one end of all ranges."""

    high: bool

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return high if self.high else low

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return high if self.high else low

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return choices[-1 if self.high else 0]


def space_laws(case: SpaceCase) -> Mapping[str, Callable[[], None]]:
    """Return the laws of a search space, by what they say.

    Args:
        case: The space.
    """
    laws: list[Callable[[SpaceCase], None]] = [
        proposals_are_valid_and_replay_from_their_record,
        draws_propose_different_experiments,
        both_ends_of_all_ranges_are_valid,
        seed_and_data_are_left_alone,
        no_global_randomness_is_consumed,
        documented_with_its_parameters,
    ]
    return {law.__name__: partial(law, case) for law in laws}


def _drawn(case: SpaceCase) -> list[tuple[_Random, Experiment]]:
    trials = [_Random(random.Random(SEED + number)) for number in range(case.proposals)]  # noqa: S311  # no secret
    return [(trial, case.space(trial, case.context)) for trial in trials]


def proposals_are_valid_and_replay_from_their_record(case: SpaceCase) -> None:
    """What is proposed is an experiment that JSON carries, and its record proposes it again."""
    for trial, experiment in _drawn(case):
        assert isinstance(experiment, Experiment)
        assert Experiment.from_json(experiment.to_json()) == experiment
        assert case.space(_Recorded(trial.values), case.context) == experiment
        assert trial.values, "a space asks for a parameter"


def draws_propose_different_experiments(case: SpaceCase) -> None:
    """Different draws propose different experiments."""
    proposed = [experiment for _, experiment in _drawn(case)]
    assert any(experiment != proposed[0] for experiment in proposed[1:])


def both_ends_of_all_ranges_are_valid(case: SpaceCase) -> None:
    """The ends of all ranges are experiments as well."""
    for high in (False, True):
        assert isinstance(case.space(_Extreme(high), case.context), Experiment)


def seed_and_data_are_left_alone(case: SpaceCase) -> None:
    """Every trial of an arm is compared on the same data, and its seed is given by the search."""
    for _, experiment in _drawn(case):
        assert (experiment.seed, experiment.data) == (case.context.experiment.seed, case.context.experiment.data)


def no_global_randomness_is_consumed(case: SpaceCase) -> None:
    """A space draws nothing by itself."""
    with no_global_randomness():
        _drawn(case)


def documented_with_its_parameters(case: SpaceCase) -> None:
    """The docstring names every parameter."""
    text = case.space.__doc__ or ""
    missing = {name for trial, _ in _drawn(case) for name in trial.values if name.rpartition(".")[2] not in text}
    assert not missing, f"the docstring of {case.space.__name__} does not name {', '.join(sorted(missing))}"
