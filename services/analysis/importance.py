"""Which parameters decided whether a trial of a search was among the best, by Optuna's PED-ANOVA.

References:
    Watanabe, Bansal, Hutter. PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces.
    IJCAI 2023.
"""

import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import create_trial

FEWEST_TRIALS = 4
BEST = 0.25
SHUFFLES = 19


@dataclass(frozen=True, slots=True)
class Importance:
    """What a parameter decided.

    Args:
        share: Of the importance of all parameters of the search, 0..1.
        by_chance: Largest share in `SHUFFLES` searches with the same trials, the scores shuffled among them: a share
            below it says nothing, at the level of 5%.
    """

    share: float
    by_chance: float


def importances(
    trials: Sequence[tuple[Mapping[str, Any], float]], *, shuffles: int = SHUFFLES
) -> dict[str, Importance]:
    """Return, by parameter, how much it decided whether a trial was among the best quarter; the largest share first.

    Args:
        trials: Of each complete trial of one search its ``values`` and ``distributions``, and its score.
        shuffles: How often the scores are shuffled, always in the same ways.

    Returns:
        Nothing where there are fewer than `FEWEST_TRIALS` trials, fewer than two parameters, or equal scores only.
    """
    names = {name for parameters, _ in trials for name in parameters.get("values", {})}
    scores = [score for _, score in trials]
    if len(trials) < FEWEST_TRIALS or len(names) < 2 or len(set(scores)) < 2:
        return {}
    read = {text: json_to_distribution(text) for p, _ in trials for text in p["distributions"].values()}
    points = [(dict(p["values"]), {name: read[text] for name, text in p["distributions"].items()}) for p, _ in trials]
    shares = _shares(points, scores)
    draws = random.Random(0)  # noqa: S311  # for shuffling, not for secrets
    shuffled = [_shares(points, draws.sample(scores, len(scores))) for _ in range(shuffles)]
    order = sorted(shares, key=lambda name: (-shares[name], name))
    return {name: Importance(shares[name], max((each[name] for each in shuffled), default=0.0)) for name in order}


def _shares(
    points: Sequence[tuple[dict[str, Any], dict[str, BaseDistribution]]], scores: Sequence[float]
) -> dict[str, float]:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler())
    study.add_trials(
        [
            create_trial(value=score, params=values, distributions=distributions)
            for (values, distributions), score in zip(points, scores, strict=True)
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few trials: what they are worth is seen from the shuffled scores
        found = PedAnovaImportanceEvaluator(target_quantile=BEST).evaluate(study)
    total = sum(found.values())
    return {name: value / total if total > 0 else 1 / len(found) for name, value in found.items()}
