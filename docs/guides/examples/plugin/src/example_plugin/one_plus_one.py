"""A search algorithm: (1 + 1) evolution, which changes the best trial so far a little."""

import math
import random
from dataclasses import dataclass
from typing import Annotated, Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from nas_blockout.settings_fields import Range, check
from services.search_plugins import SearchAlgorithm


@dataclass(frozen=True, slots=True)
class OnePlusOneSettings:
    """Settings of (1 + 1) evolution.

    Args:
        step: Standard deviation of the change of a number, as a share of its range.
        new_choice: Probability that a choice is drawn anew.
    """

    step: Annotated[float, Range(gt=0, le=1)] = 0.1
    new_choice: Annotated[float, Range(ge=0, le=1)] = 0.2

    def __post_init__(self) -> None:
        check(self)


class OnePlusOne(BaseSampler):
    """Proposes the parameters of the best complete trial, each changed; at random while there is none.

    It is made for one proposal. What it knows of the search are the trials of the study that it is asked with, and all
    of its randomness comes from the seed: so a search that is resumed goes on as if it had never stopped.

    Args:
        settings: Its settings.
        seed: Of this proposal.
    """

    def __init__(self, settings: OnePlusOneSettings, seed: int) -> None:
        self._settings = settings
        self._random = RandomSampler(seed=seed)
        self._draws = random.Random(f"change {seed}")  # noqa: S311  # no secret

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return nothing: every parameter is proposed by itself."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return nothing: every parameter is proposed by itself."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the value of the parent, changed, or a random one where the parent has none."""
        drawn = self._random.sample_independent(study, trial, param_name, param_distribution)
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = max if study.direction.name == "MAXIMIZE" else min
        parent = best(complete, key=lambda each: each.value) if complete else None
        # Of a space with conditions, the parent may lack the parameter, or have it from another range.
        if parent is None or parent.distributions.get(param_name) != param_distribution:
            return drawn
        value = parent.params[param_name]
        if isinstance(param_distribution, CategoricalDistribution):
            return drawn if self._draws.random() < self._settings.new_choice else value
        return self._changed(value, param_distribution)

    def _changed(self, value: float, distribution: Any) -> float:
        low, high = distribution.low, distribution.high
        scale, back = (math.log, math.exp) if distribution.log else (float, float)
        moved = scale(value) + self._draws.gauss(0, self._settings.step) * (scale(high) - scale(low))
        # Not beyond the ends, which a logarithm and back may miss by a rounding error.
        inside = min(max(back(moved), low), high)
        return round(inside) if isinstance(distribution, IntDistribution) else inside


ONE_PLUS_ONE = SearchAlgorithm(
    OnePlusOneSettings, OnePlusOne, summary="the best trial so far, with every parameter changed a little"
)
