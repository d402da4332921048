"""Which parameters decided whether a trial of a search was among the best, by Optuna's PED-ANOVA.

References:
    Watanabe, Bansal, Hutter. PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces.
    IJCAI 2023.
"""

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import create_trial

from services.trial_record import Trial

FEWEST_TRIALS = 4
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


def importances(trials: Sequence[Trial], *, shuffles: int = SHUFFLES) -> dict[str, Importance]:
    """Return, by parameter, how much it decided whether a trial was among the best quarter; the largest share first.

    Args:
        trials: The complete trials of one search.
        shuffles: How often the scores are shuffled, always in the same ways.

    Returns:
        Nothing where there are fewer than `FEWEST_TRIALS` trials, fewer than two parameters, or equal scores only.
    """
    names = {name for trial in trials for name in trial.values}
    scores = [trial.score for trial in trials if trial.score is not None]
    if len(trials) < FEWEST_TRIALS or len(names) < 2 or len(set(scores)) < 2:
        return {}
    # Trials of one search share their distributions: each text is parsed once.
    parsed = {text: json_to_distribution(text) for trial in trials for text in trial.distributions.values()}
    points = [(dict(t.values), {name: parsed[text] for name, text in t.distributions.items()}) for t in trials]
    shares = _shares(points, scores)
    draws = random.Random(0)  # noqa: S311  # for shuffling, not for secrets
    shuffled = [_shares(points, draws.sample(scores, len(scores))) for _ in range(shuffles)]
    order = sorted(shares, key=lambda name: (-shares[name], name))
    return {
        name: Importance(shares[name], max((by_chance[name] for by_chance in shuffled), default=0.0)) for name in order
    }


def _shares(
    points: Sequence[tuple[dict[str, Any], dict[str, BaseDistribution]]], scores: Sequence[float]
) -> dict[str, float]:
    # It imports scikit-learn, 1.5 seconds that a study without a search of `FEWEST_TRIALS` trials need not pay.
    from optuna.importance import PedAnovaImportanceEvaluator

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler())
    study.add_trials(
        [
            create_trial(value=score, params=values, distributions=distributions)
            for (values, distributions), score in zip(points, scores, strict=True)
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are few trials: the shuffled scores show what they are worth
        importance = PedAnovaImportanceEvaluator(target_quantile=BEST).evaluate(study)
    total = sum(importance.values())
    return {name: value / total if total > 0 else 1 / len(importance) for name, value in importance.items()}
