"""Search space of fixed hierarchies: the design choices that Blockout is meant to replace by learning.

Murdock et al. (CVPR 2016, section 1) list them: the number and position of branches, the nodes of each branch, and the
clustering of the classes.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones import backbone_of, stages_of
from nas_blockout.backbones.branched import Stage
from nas_blockout.experiment import Experiment, outline
from search_spaces.graph_stages import StagedGraph
from search_spaces.trial import Context, TooFew, Trial

_MOST_BRANCHES = 4
_LEAST_NODES = 8  # of a layer that is to be divided
_ASSIGNMENTS = 1_000_000


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """The design choices of a fixed hierarchy.

    Args:
        first_split: Position of the first layer with branches; the layers before it are shared. In a graph, of the
            first stage with branches among those that can be divided.
        branches: Number of branches at the first split, at least 2.
        splits_again: Whether each branch splits into two at the next layer, or stage.
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

    A network that is a graph of layers, such as a residual one, is decided on by stages: its layers between two changes
    of resolution, or those of one module. Layers that must stay whole, or are too narrow, belong to all branches.

    Parameters: ``branched.first_split``, ``branched.branches``, ``branched.splits_again``, ``branched.skew``,
    ``branched.shared``, ``branched.assignment``.

    Raises:
        ValueError: The network cannot be built for these images, its graph cannot be traced, or the method is another
            than none.
        TooFew: There are too few nodes or classes to divide among branches.
    """
    backbone = context.experiment.backbone
    if context.classes < 4:
        raise TooFew(f"the space 'branched' needs 4 classes or more, got {context.classes}")
    if backbone_of(backbone).stages is None:
        graph = _graph_of(backbone, context.shape, context.classes)
        return replace(context.experiment, architecture=branched_graph(trial, graph))
    stages = stages_of(backbone, context.shape, context.classes)
    hierarchy = _suggested(trial, [stage.width for stage in stages[:-1]], context.classes)
    return replace(context.experiment, architecture=hierarchical(hierarchy, stages))


def branched_graph(trial: Trial, graph: StagedGraph) -> Architecture:
    """Return a proposed architecture over a graph of layers; parameters and errors as of `branched`."""
    splits, classes = list(graph.splits(_LEAST_NODES).values()), list(graph.layers.values())[-1]
    return hierarchical_graph(_suggested(trial, splits, classes), graph)


def _suggested(trial: Trial, widths: Sequence[int], classes: int) -> Hierarchy:
    """Ask for the design choices.

    Args:
        trial: Is asked.
        widths: Nodes of each layer or stage at which the network may split.
        classes: Number of classes.
    """
    if not widths:
        raise ValueError(
            f"the space 'branched' needs layers of {_LEAST_NODES} nodes or more that may be divided and of which one "
            "reads another, or the classes do; between all of these lie layers that stay whole"
        )
    narrowest = min(widths)
    if narrowest < _LEAST_NODES:
        raise TooFew(f"the space 'branched' needs {_LEAST_NODES} nodes a layer or more, got {narrowest}")
    most = min(_MOST_BRANCHES, classes // 2, narrowest // 4)
    return Hierarchy(
        first_split=trial.suggest_int("branched.first_split", 0, len(widths) - 1),
        branches=trial.suggest_int("branched.branches", 2, most),
        splits_again=trial.suggest_categorical("branched.splits_again", [False, True]),
        skew=trial.suggest_float("branched.skew", 0.0, 1.0),
        shared=trial.suggest_float("branched.shared", 0.0, 0.5),
        assignment=trial.suggest_int("branched.assignment", 0, _ASSIGNMENTS - 1),
    )


@lru_cache(maxsize=8)  # the same for all trials of an arm, and some networks take seconds to analyze
def _graph_of(backbone: Any, shape: tuple[int, int, int], classes: int) -> StagedGraph:
    return StagedGraph.of(outline(backbone, shape, classes))


def hierarchical(hierarchy: Hierarchy, stages: Sequence[Stage]) -> Architecture:
    """Return the architecture of a fixed hierarchy.

    Args:
        hierarchy: The design choices.
        stages: Stages of the backbone; the last one has the classes as its nodes.
    """
    pairs, leaves = _clusters(hierarchy, stages[-1].width)
    clusters = len(leaves)
    layers = []
    for position, stage in enumerate(stages[:-1]):
        if position < hierarchy.first_split:
            layers.append(Layer(stage.name, (Group(tuple(range(clusters)), stage.width),)))
        else:
            members = pairs if position == hierarchy.first_split else leaves
            layers.append(_split(stage.name, stage.width, members, hierarchy))
    return Architecture(clusters, (*layers, _classes(stages[-1].name, stages[-1].width, leaves, hierarchy.assignment)))


def hierarchical_graph(hierarchy: Hierarchy, graph: StagedGraph) -> Architecture:
    """Return the architecture of a fixed hierarchy over a graph of layers.

    All layers of a stage are divided alike, a residual stream as what it is read and written by. Rigid layers stay
    whole and belong to all branches, and so do layers with fewer nodes than branches.

    Args:
        hierarchy: The design choices.
        graph: The network.
    """
    last, classes = list(graph.layers.items())[-1]
    branches, leaves = _clusters(hierarchy, classes)
    everywhere = tuple(cluster for leaf in leaves for cluster in leaf)
    able = list(graph.splits(_LEAST_NODES))
    first = able[hierarchy.first_split]
    following = next((position for position in able if position > first), len(graph.stages))
    members_of: dict[str, list[tuple[int, ...]]] = {}
    for position, stage in enumerate(graph.stages):
        members_of |= dict.fromkeys(stage, leaves if position >= following else branches if position >= first else [])
    layers = []
    for name, width in list(graph.layers.items())[:-1]:
        members, rigid = members_of[name], name in graph.rigid
        if rigid or not members or width < len(members):
            layers.append(Layer(name, (Group(everywhere, width),), rigid))
        else:
            layers.append(_split(name, width, members, hierarchy))
    return Architecture(
        len(everywhere), (*layers, _classes(last, classes, leaves, hierarchy.assignment)), tuple(graph.edges)
    )


def _clusters(hierarchy: Hierarchy, classes: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return the clusters of each branch at the first split, and those of each branch behind the next one."""
    again = hierarchy.splits_again and 2 * hierarchy.branches <= classes
    leaves: list[tuple[int, ...]] = [(cluster,) for cluster in range(hierarchy.branches * (2 if again else 1))]
    pairs: list[tuple[int, ...]] = [(2 * branch, 2 * branch + 1) for branch in range(hierarchy.branches)]
    return pairs if again else leaves, leaves


def _split(name: str, width: int, members: Sequence[tuple[int, ...]], hierarchy: Hierarchy) -> Layer:
    everywhere = tuple(cluster for member in members for cluster in member)
    shared = min(round(hierarchy.shared * width), width - len(members))
    shares = [1 + hierarchy.skew * branch for branch in range(len(members))]
    widths = _apportioned(width - shared, shares)
    groups = [Group(member, part) for member, part in zip(members, widths, strict=True)]
    return Layer(name, (*groups, *([Group(everywhere, shared)] if shared else [])))


def _apportioned(total: int, shares: Sequence[float]) -> list[int]:
    """Split an integer in proportion to shares, with at least 1 each; the widest part absorbs the rounding."""
    widths = [max(1, int(total * share / sum(shares))) for share in shares]
    widths[widths.index(max(widths))] += total - sum(widths)
    return widths


def _classes(name: str, classes: int, leaves: Sequence[tuple[int, ...]], seed: int) -> Layer:
    labels = list(range(classes))
    random.Random(seed).shuffle(labels)  # noqa: S311  # not used for security
    return Layer(
        name,
        tuple(
            Group(leaf, len(members), tuple(members))
            for leaf, members in ((leaf, sorted(labels[number :: len(leaves)])) for number, leaf in enumerate(leaves))
        ),
    )
