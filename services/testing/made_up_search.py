"""A search on trials whose learning curves are made up: the real scheduler, and nothing that trains."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nas_blockout.experiment import known_costs
from nas_blockout.training import TrainingSettings, sample_passes
from services.search.scheduler import Scheduler
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study
from services.trial_record import SEARCH, Trial

IMAGES, SHAPE, CLASSES = 100, (1, 8, 8), 10


def study_of(arm: Mapping[str, Any], *, trials: int, epochs: int, seed: int = 0, **top: Any) -> Study:
    """Return a study of one arm on 8 x 8 images, whose budget pays for so many whole trials and a retraining.

    Args:
        arm: Keys of the arm in a study file.
        trials: Search trials.
        epochs: Of a trial.
        seed: Of the study.
        top: Other keys of the study file.

    Raises:
        StudyError: The arm violates rules.
    """
    document = {
        "schema_version": 2,
        "name": "laws",
        "seed": seed,
        "backbone": {"name": "convnet", "channels": [8, 8], "hidden": [12]},
        "training": {"epochs": epochs},
        "budget": {"sample_passes": sample_passes(TrainingSettings(epochs), IMAGES) * (trials + 1)},
        "retrain": {"seeds": [0]},
        "arms": {"arm": dict(arm)},
        **top,
    }
    return resolve_document(document, source="laws")


def scheduler_of(study: Study, known: Sequence[Trial] = ()) -> Scheduler:
    """Return the scheduler of a study that knows these trials."""
    return Scheduler(study, shape=SHAPE, classes=CLASSES, images=IMAGES, trials=known)


def searched(study: Study, *, known: Sequence[Trial] = (), most: int | None = None) -> list[Trial]:
    """Return all search trials of one worker, in order.

    Args:
        study: As of `study_of`.
        known: The first trials, which have ended; the search goes on after them.
        most: Trials after which it ends; None for the whole budget.
    """
    scheduler, found = scheduler_of(study, known), list(known)
    while most is None or len(found) < most:
        proposal = scheduler.next()
        if proposal is None or proposal.phase != SEARCH:
            break
        found.append(trained(scheduler, replace(proposal, suggest_seconds=0.0)))  # which differs from run to run
        scheduler.update(found[-1])
    return found


def trained(scheduler: Scheduler, trial: Trial) -> Trial:
    """Return what a driver would make of a trial: epoch by epoch, stopped where the scheduler says; every ninth fails.

    Args:
        scheduler: Of its study.
        trial: As it was proposed.
    """
    if trial.search_exhausted is not None:
        return replace(trial, state="failed")
    epochs = trial.config.training.epochs
    curve = _curve(trial, epochs)
    for epoch in range(1, epochs + 1):
        trial = replace(trial, state="running", sample_passes=epoch * IMAGES, curve=tuple(curve[:epoch]))
        scheduler.update(trial)
        if trial.number % 9 == 8 and epoch == epochs:
            return replace(trial, state="failed", reason="made up")
        if epoch < epochs and (stop := scheduler.reason_to_stop(trial, since=epoch - 1)) is not None:
            result = {"stopped_after": stop[0], "validation_accuracy": curve[stop[0] - 1]}
            return replace(trial, state="pruned", reason=stop[1], result=result)
    costs = known_costs(trial.config, shape=SHAPE, classes=CLASSES)
    return replace(trial, state="complete", score=curve[-1], result=costs)


def _curve(trial: Trial, epochs: int) -> list[float]:
    """Return a rising curve that depends on what was proposed and on nothing else."""
    draws = random.Random(repr(sorted(trial.values.items())))  # noqa: S311  # no secret
    quality = draws.random()
    return [quality * (1 - 0.8 ** (epoch + 1)) + 0.01 * draws.random() for epoch in range(epochs)]
