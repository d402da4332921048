"""What was traded among several objectives, by Optuna: the Pareto front of trials, and the volume that it dominates."""

from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from optuna._hypervolume import (
    compute_hypervolume,
)  # Optuna's own; what it gives is checked against cases worked by hand
from optuna.trial import create_trial

from services.search.samplers import direction


def front(points: Sequence[Mapping[str, float]]) -> list[int]:
    """Return the places of the points that no other is better than in everything, in their order; equals are all kept.

    Args:
        points: Each with the same objectives, two or more; accuracy should be high and everything else low.
    """
    if not points:
        return []
    objectives = list(points[0])
    study = optuna.create_study(directions=[direction(name) for name in objectives])
    study.add_trials([create_trial(values=[point[name] for name in objectives]) for point in points])
    return sorted(trial.number for trial in study.best_trials)


def hypervolume(points: Sequence[Mapping[str, float]], reference: Mapping[str, float]) -> float:
    """Return the share of all there is to win that points have won, in 0..1.

    Of the box between the reference point and the ideal (accuracy 1, all costs 0), the part that lies behind some
    point. Each cost is taken as its share of the reference's.

    Args:
        points: With the objectives of the reference; none has a higher cost than it.
        reference: Accuracy 0, and the highest costs.
    """
    losses = [
        [1 - point[name] if name == "accuracy" else point[name] / most for name, most in reference.items()]
        for point in points
    ]
    return float(compute_hypervolume(np.array(losses).reshape(-1, len(reference)), np.ones(len(reference))))
