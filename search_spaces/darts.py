"""Search space of differentiable search: what it does not relax, and how it learns."""

from dataclasses import replace

from nas_blockout.experiment import Experiment, outline
from nas_blockout.methods.supernet.darts_settings import DartsSettings
from nas_blockout.structure.confusion import most_branches
from search_spaces.trial import Context, TooFew, Trial

_MOST_BRANCHES = 4


def darts(trial: Trial, context: Context) -> Experiment:
    """Vary the number of branches, where they begin, the nodes of all branches, and the learning rate of the choices.

    The branch of every class and all widths are learned in each trial. Parameters: ``darts.branches`` (2 to 4),
    ``darts.split_layers``, which is at most so many that each of them has a node for every branch, ``darts.shared``
    (0 to 0.5), ``darts.structure_lr_multiplier`` (3 to 100, logarithmic).

    Raises:
        ValueError: The arm's method is not darts, or the network cannot be built for these images.
        TooFew: There are too few nodes or classes to divide among branches.
    """
    settings = context.experiment.method
    if not isinstance(settings, DartsSettings):
        raise ValueError("the space 'darts' needs an arm whose method is darts")
    possible = most_branches(outline(context.experiment.backbone, context.shape, context.classes))
    if possible[0] < 2:
        raise TooFew("the space 'darts' needs 2 classes and 2 nodes or more in the layers that the classes read")
    branches = trial.suggest_int("darts.branches", 2, min(_MOST_BRANCHES, possible[0]))
    changed = replace(
        settings,
        branches=branches,
        split_layers=trial.suggest_int("darts.split_layers", 1, sum(each >= branches for each in possible)),
        shared=trial.suggest_float("darts.shared", 0.0, 0.5),
        structure_lr_multiplier=trial.suggest_float("darts.structure_lr_multiplier", 3.0, 100.0, log=True),
    )
    return replace(context.experiment, method=changed)
