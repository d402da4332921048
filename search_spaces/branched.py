"""Search space of fixed hierarchies: the design choices that Blockout is meant to replace by learning.

Murdock et al. (CVPR 2016, section 1) list them: the number and position of branches, the nodes of each branch, and the
clustering of the classes.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones import require_stages, stages_of
from nas_blockout.backbones.branched import Stage
from nas_blockout.experiment import Experiment
from search_spaces.trial import Context, TooFew, Trial

_MOST_BRANCHES = 4
_ASSIGNMENTS = 1_000_000


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """The design choices of a fixed hierarchy.

    Args:
        first_split: Position of the first layer with branches; the layers before it are shared.
        branches: Number of branches at the first split, at least 2.
        splits_again: Whether each branch splits into two at the next layer.
        skew: How unequal the branches' widths are: branch i gets a share proportional to ``1 + skew * i``.
        shared: Fraction of the nodes of every branched layer that belong to all branches, in [0, 1].
        assignment: Seed of the random balanced assignment of the classes.
    """

    first_split: int
    branches: int
    splits_again: bool
    skew: float
    shared: float
    assignment: int


def branched(trial: Trial, context: Context) -> Experiment:
    """Vary where a network splits, the number and widths of its branches, and the classes of each branch.

    Parameters: ``branched.first_split``, ``branched.branches``, ``branched.splits_again``, ``branched.skew``,
    ``branched.shared``, ``branched.assignment``.

    Raises:
        ValueError: The backbone cannot be branched.
        TooFew: There are too few nodes or classes to divide among branches.
    """
    require_stages(context.experiment.backbone, "the space 'branched'")
    stages = stages_of(context.experiment.backbone, context.shape, context.classes)
    narrowest = min(stage.width for stage in stages[:-1])
    if narrowest < 8:
        raise TooFew(f"the space 'branched' needs 8 nodes a layer or more, got {narrowest}")
    if context.classes < 4:
        raise TooFew(f"the space 'branched' needs 4 classes or more, got {context.classes}")
    most = min(_MOST_BRANCHES, context.classes // 2, narrowest // 4)
    hierarchy = Hierarchy(
        first_split=trial.suggest_int("branched.first_split", 0, len(stages) - 2),
        branches=trial.suggest_int("branched.branches", 2, most),
        splits_again=trial.suggest_categorical("branched.splits_again", [False, True]),
        skew=trial.suggest_float("branched.skew", 0.0, 1.0),
        shared=trial.suggest_float("branched.shared", 0.0, 0.5),
        assignment=trial.suggest_int("branched.assignment", 0, _ASSIGNMENTS - 1),
    )
    return replace(context.experiment, architecture=hierarchical(hierarchy, stages))


def hierarchical(hierarchy: Hierarchy, stages: Sequence[Stage]) -> Architecture:
    """Return the architecture of a fixed hierarchy.

    Args:
        hierarchy: The design choices.
        stages: Stages of the backbone; the last one has the classes as its nodes.
    """
    again = hierarchy.splits_again and 2 * hierarchy.branches <= stages[-1].width
    clusters = hierarchy.branches * (2 if again else 1)
    leaves = [(cluster,) for cluster in range(clusters)]
    pairs = [(2 * branch, 2 * branch + 1) for branch in range(hierarchy.branches)] if again else leaves
    everywhere = tuple(range(clusters))
    layers = []
    for position, stage in enumerate(stages[:-1]):
        if position < hierarchy.first_split:
            layers.append(Layer(stage.name, (Group(everywhere, stage.width),)))
        else:
            members = pairs if position == hierarchy.first_split else leaves
            layers.append(_split(stage, members, everywhere, hierarchy))
    return Architecture(clusters, (*layers, _classes(stages[-1], leaves, hierarchy.assignment)))


def _split(
    stage: Stage, members: Sequence[tuple[int, ...]], everywhere: tuple[int, ...], hierarchy: Hierarchy
) -> Layer:
    shared = min(round(hierarchy.shared * stage.width), stage.width - len(members))
    shares = [1 + hierarchy.skew * branch for branch in range(len(members))]
    widths = _apportioned(stage.width - shared, shares)
    groups = [Group(member, width) for member, width in zip(members, widths, strict=True)]
    return Layer(stage.name, (*groups, *([Group(everywhere, shared)] if shared else [])))


def _apportioned(total: int, shares: Sequence[float]) -> list[int]:
    """Split an integer in proportion to shares, with at least 1 each; the widest part absorbs the rounding."""
    widths = [max(1, int(total * share / sum(shares))) for share in shares]
    widths[widths.index(max(widths))] += total - sum(widths)
    return widths


def _classes(stage: Stage, leaves: Sequence[tuple[int, ...]], seed: int) -> Layer:
    labels = list(range(stage.width))
    random.Random(seed).shuffle(labels)  # noqa: S311  # not used for security
    return Layer(
        stage.name,
        tuple(
            Group(leaf, len(members), tuple(members))
            for leaf, members in ((leaf, sorted(labels[number :: len(leaves)])) for number, leaf in enumerate(leaves))
        ),
    )
