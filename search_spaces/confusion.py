"""Search space of branches that are derived from the confusions of a dense network."""

from dataclasses import replace

from nas_blockout.backbones import backbone_of
from nas_blockout.experiment import Experiment, outline
from nas_blockout.structure.confusion import most_branches
from search_spaces.trial import Context, TooFew, Trial

_MOST_BRANCHES = 6


def confusion(trial: Trial, context: Context) -> Experiment:
    """Vary the clustering of the classes, the number and overlap of the branches, and where they begin.

    Parameters: ``confusion.clustering``, ``confusion.branches`` (2 to 6), ``confusion.overlap``,
    ``confusion.split_layers``, which is at most so many that each of them has a node for every branch.

    Raises:
        ValueError: The arm has no section `confusion`, or the network cannot be built for these images.
        TooFew: There are too few nodes or classes to divide among branches.
    """
    settings = context.experiment.confusion
    if settings is None:
        raise ValueError("the space 'confusion' needs an arm with confusion; add confusion: {} to the arm")
    possible = most_branches(outline(context.experiment.backbone, context.shape, context.classes))
    if possible[0] < 2:
        raise TooFew("the space 'confusion' needs 2 classes and 2 nodes or more in the layers that the classes read")
    # In a chain of layers each may branch, as far as recorded searches go; in a graph some are too narrow for that.
    is_chain = backbone_of(context.experiment.backbone).stages is not None
    most = min(_MOST_BRANCHES, possible[-1] if is_chain else possible[0])
    clustering = trial.suggest_categorical("confusion.clustering", ["spectral", "affinity"])
    changed = replace(
        settings,
        clustering="affinity" if clustering == "affinity" else "spectral",
        branches=(branches := trial.suggest_int("confusion.branches", 2, most)),
        overlap=trial.suggest_categorical("confusion.overlap", [False, True]),
        split_layers=trial.suggest_int("confusion.split_layers", 1, sum(each >= branches for each in possible)),
    )
    return replace(context.experiment, confusion=changed)
