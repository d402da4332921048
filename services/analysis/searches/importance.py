"""Which parameters decided whether a trial of a search was among the best, by Optuna's PED-ANOVA.

References:
    Watanabe, Bansal, Hutter. PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces.
    IJCAI 2023.
"""

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import optuna
from optuna.distributions import json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from services.search.samplers import ToldStorage
from services.trial_record import Trial

FEWEST_TRIALS = 4
MOST_TRIALS = 2000  # of a search: more tell the same, and each costs a millisecond in all shuffles
BEST = 0.25
SHUFFLES = 19


@dataclass(frozen=True, slots=True)
class Importance:
    """How much a parameter decided.

    Args:
        share: Of the importance of all parameters of the search, in [0, 1].
        by_chance: Largest share in `SHUFFLES` searches with the same trials and shuffled scores: a share below it is
            not significant at the level of 5%.
    """

    share: float
    by_chance: float


def evenly_spaced(trials: Sequence[Trial], most: int) -> Sequence[Trial]:
    """Return at most so many of the trials, at equal distances, the first and the last one included."""
    if len(trials) <= most:
        return trials
    return [trials[index * (len(trials) - 1) // (most - 1)] for index in range(most)]


def importances(trials: Sequence[Trial], *, shuffles: int = SHUFFLES) -> dict[str, Importance]:
    """Return, by parameter, how much it decided whether a trial was among the best quarter; the largest share first.

    Args:
        trials: The complete trials of one search; of more than `MOST_TRIALS` those at equal distances are used.
        shuffles: How often the scores are shuffled, always in the same ways.

    Returns:
        Nothing where there are fewer than `FEWEST_TRIALS` trials, fewer than two parameters, or equal scores only.
    """
    trials = evenly_spaced(trials, MOST_TRIALS)
    names = {name for trial in trials for name in trial.values}
    scores = [trial.score for trial in trials if trial.score is not None]
    if len(trials) < FEWEST_TRIALS or len(names) < 2 or len(set(scores)) < 2:
        return {}
    told = _frozen(trials)
    shares = _shares(told, scores)
    draws = random.Random(0)  # noqa: S311  # for shuffling, not for secrets
    shuffled = [_shares(told, draws.sample(scores, len(scores))) for _ in range(shuffles)]
    order = sorted(shares, key=lambda name: (-shares[name], name))
    return {
        name: Importance(shares[name], max((by_chance[name] for by_chance in shuffled), default=0.0)) for name in order
    }


def _frozen(trials: Sequence[Trial]) -> list[FrozenTrial]:
    """Return trials as Optuna's."""
    # Trials of one search share their distributions: each text is parsed once.
    parsed = {text: json_to_distribution(text) for trial in trials for text in trial.distributions.values()}
    began = datetime(2000, 1, 1)  # a trial that is complete has moments, which nothing here reads
    return [
        FrozenTrial(
            number=number,
            trial_id=number,  # by which the best trials are told from the others
            state=TrialState.COMPLETE,
            value=trial.score,
            datetime_start=began,
            datetime_complete=began,
            params=dict(trial.values),
            distributions={name: parsed[text] for name, text in trial.distributions.items()},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )
        for number, trial in enumerate(trials)
    ]


def _shares(trials: Sequence[FrozenTrial], scores: Sequence[float]) -> dict[str, float]:
    """Return the importances of parameters if the trials, which are changed, had these scores."""
    # It imports scikit-learn, 1.5 seconds that a study without a search of `FEWEST_TRIALS` trials need not pay.
    from optuna.importance import PedAnovaImportanceEvaluator

    for trial, score in zip(trials, scores, strict=True):
        trial.value = score
    storage = ToldStorage(list(trials))  # copying all trials for each shuffle would take nearly all of the time
    study = optuna.create_study(storage=storage, direction="maximize", sampler=optuna.samplers.RandomSampler())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are few trials: the shuffled scores show what they are worth
        importance = PedAnovaImportanceEvaluator(target_quantile=BEST).evaluate(study)
    total = sum(importance.values())
    return {name: value / total if total > 0 else 1 / len(importance) for name, value in importance.items()}
