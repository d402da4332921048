"""Quasi-random search of Optuna, whose place in the sequence the store keeps with each trial."""

import warnings
from collections.abc import Mapping

from optuna import Study
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import QMCSampler, RandomSampler
from optuna.trial import FrozenTrial

from services.search.sampler_history import SamplerHistory

INDEX = "qmc:index"


class QuasiRandom(QMCSampler):
    """A point of a scrambled low-discrepancy sequence.

    Args:
        distributions: What is searched together; every other parameter is drawn at random.
        index: Place of the point in the sequence, from 0.
        sequence: ``sobol`` or ``halton``.
        scrambling: Seed of the sequence, the same for all proposals of a study.
        seed: Of the random draws.
    """

    def __init__(
        self, distributions: Mapping[str, BaseDistribution], index: int, *, sequence: str, scrambling: int, seed: int
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(
                qmc_type=sequence,
                scramble=True,
                seed=scrambling,
                independent_sampler=RandomSampler(seed=seed),
                warn_independent_sampling=False,
            )
        self._searched = {name: each for name, each in distributions.items() if not each.single()}
        self._index = index

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return what is searched together."""
        return dict(self._searched)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, object]:
        """Return the point, and note its place with the trial."""
        if search_space:
            study._storage.set_trial_system_attr(trial._trial_id, INDEX, self._index)
        return super().sample_relative(study, trial, search_space)

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._index


def quasi_random(history: SamplerHistory, seed: int, *, study_seed: int, attempt: int) -> QuasiRandom:
    """Return the sampler of an arm.

    The parameters of the first trial are searched together, and those of the first trial itself are drawn at random:
    only by running a space is known what it has.

    Args:
        history: Search trials of the arm.
        seed: Of this proposal.
        study_seed: Of the study.
        attempt: Number of times that this proposal was asked for before.
    """
    first = history.first
    distributions = {} if first is None else {name: json_to_distribution(x) for name, x in first.distributions.items()}
    last = next((trial.sampler[INDEX] for trial in history.backwards() if INDEX in trial.sampler), -1)
    sequence = history.rules.settings.sequence or "sobol"
    return QuasiRandom(distributions, last + 1 + attempt, sequence=sequence, scrambling=study_seed, seed=seed)
