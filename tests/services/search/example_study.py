"""A study on 8 x 8 images of ten classes, of a given number of search trials, and its scheduler."""

from collections.abc import Mapping, Sequence
from typing import Any

from nas_blockout.training import TrainingSettings, sample_passes
from services.search.scheduler import Scheduler
from services.study_config.resolution import resolve_document
from services.study_config.resolved_study import Study
from services.trial_record import Trial

IMAGES = 100
SHAPE, CLASSES = (1, 8, 8), 10


def example(arms: Mapping[str, Any], *, epochs: int, trials: int, seeds: Sequence[int], **top: Any) -> Study:
    """Return a study whose budget pays for so many search trials and a retraining with each seed."""
    document = {
        "schema_version": 2,
        "name": "example",
        "backbone": {"name": "convnet", "channels": [8, 8], "hidden": [12]},
        "training": {"epochs": epochs},
        "budget": {"sample_passes": sample_passes(TrainingSettings(epochs), IMAGES) * (trials + len(seeds))},
        "retrain": {"seeds": seeds},
        "arms": arms,
        **top,
    }
    return resolve_document(document, source="x")


def scheduler_of(study: Study, known: Sequence[Trial] = ()) -> Scheduler:
    """Return the scheduler of a study that knows these trials."""
    return Scheduler(study, shape=SHAPE, classes=CLASSES, images=IMAGES, trials=known)
