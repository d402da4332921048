"""Search space of branches that are derived from the confusions of a dense network."""

from dataclasses import replace

from nas_blockout.backbones import stages_of
from nas_blockout.experiment import Experiment
from search_spaces.trial import Context, Trial

_MOST_BRANCHES = 6


def confusion(trial: Trial, context: Context) -> Experiment:
    """Vary the clustering of the classes, the number and overlap of the branches, and where they begin.

    Parameters: ``confusion.clustering``, ``confusion.branches`` (2 to 6), ``confusion.overlap``,
    ``confusion.split_layers``.

    Raises:
        ValueError: The arm has no section `confusion`.
    """
    settings = context.experiment.confusion
    if settings is None:
        raise ValueError("the space 'confusion' needs an arm with confusion; add confusion: {} to the arm")
    stages = stages_of(context.experiment.backbone, context.shape, context.classes)
    most = min(_MOST_BRANCHES, *(stage.width for stage in stages))
    clustering = trial.suggest_categorical("confusion.clustering", ["spectral", "affinity"])
    changed = replace(
        settings,
        clustering="affinity" if clustering == "affinity" else "spectral",
        branches=trial.suggest_int("confusion.branches", 2, most),
        overlap=trial.suggest_categorical("confusion.overlap", [False, True]),
        split_layers=trial.suggest_int("confusion.split_layers", 1, len(stages) - 1),
    )
    return replace(context.experiment, confusion=changed)
