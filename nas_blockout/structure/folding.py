"""What a diagram shows of an architecture: its layers, or of many layers the stages that they are folded into.

Everything is read from the JSON form of an architecture; nothing here knows torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from nas_blockout.structure.branching import separating_clusters

MOST_COLUMNS = 8  # of a graph, beyond which layers are folded
_FEW = 3  # stages by module, below which a longer part of the paths is looked at

Clusters = tuple[int, ...]
Place = tuple[int, int]  # the number of a column, and of a group in it


@dataclass(frozen=True, slots=True)
class DrawnGroup:
    """The nodes of a column that belong to the same clusters.

    Args:
        clusters: That they belong to, ascending; those included that stand for connections without masks.
        nodes: How many they are, in all layers of the column.
        classes: Their labels, in the column of the classes.
        constant: Whether they read nothing.
    """

    clusters: Clusters
    nodes: int
    classes: tuple[int, ...] = ()
    constant: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A layer, or the layers of a stage.

    Args:
        name: Of the layer, or what the names of the layers have in common.
        layers: Their names.
        groups: In the order in which they first occur.
    """

    name: str
    layers: tuple[str, ...]
    groups: tuple[DrawnGroup, ...]


@dataclass(frozen=True, slots=True)
class Drawing:
    """An architecture as columns.

    Args:
        columns: From the image to the classes.
        links: Pairs of groups, in different columns, of which the first is read by the second.
        branches: Clusters that separate nodes; the others stand for connections without masks.
    """

    columns: tuple[Column, ...]
    links: tuple[tuple[Place, Place], ...]
    branches: frozenset[int]

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """Which column is read by which other one, as numbers."""
        return tuple(dict.fromkeys((source[0], reader[0]) for source, reader in self.links))


def drawing(architecture: Mapping[str, Any], *, most: int = MOST_COLUMNS) -> Drawing:
    """Return what a diagram shows of an architecture.

    The layers of a chain are all shown. Those of a graph are folded if they are too many: by the modules that hold
    them, as fine as there is room for, or else with those that follow.

    Args:
        architecture: Its JSON form.
        most: Columns of a graph, the classes among them, 2 or more.
    """
    layers: Sequence[Mapping[str, Any]] = architecture["layers"]
    names = [layer["name"] for layer in layers]
    graph = "edges" in architecture
    edges = [edge for edge in architecture["edges"] if edge[0] is not None] if graph else list(pairwise(names))
    stages = _stages(names, most) if graph and len(names) > most else {name: [name] for name in names}
    column_of = {name: number for number, stage in enumerate(stages.values()) for name in stage}
    groups: list[dict[tuple[Clusters, bool], DrawnGroup]] = [{} for _ in stages]
    place_of: dict[tuple[str, int], Place] = {}
    for layer in layers:
        number = column_of[layer["name"]]
        for position, group in enumerate(layer["groups"]):
            added = _drawn(group)
            key = (added.clusters, added.constant)
            before = groups[number].get(key, DrawnGroup(added.clusters, 0, (), added.constant))
            classes = (*before.classes, *added.classes)
            groups[number][key] = DrawnGroup(added.clusters, before.nodes + added.nodes, classes, added.constant)
            place_of[layer["name"], position] = number, list(groups[number]).index(key)
    links = dict.fromkeys(
        (place_of[source, first], place_of[reader, second])
        for source, reader in edges
        for first, read in enumerate(_of(layers, names, source))
        for second, group in enumerate(_of(layers, names, reader))
        if column_of[source] != column_of[reader] and set(read["clusters"]) & set(group["clusters"])
    )
    columns = tuple(
        Column(name, tuple(stage), tuple(each.values()))
        for (name, stage), each in zip(stages.items(), groups, strict=True)
    )
    clusters = [[tuple(group["clusters"]) for group in layer["groups"]] for layer in layers]
    used = {cluster for layer in clusters for group in layer for cluster in group}
    return Drawing(columns, tuple(links), frozenset(separating_clusters(clusters) if graph else used))


def by_module(names: Sequence[str], *, few: int = _FEW) -> list[str]:
    """Return for each layer the beginning of its module's path, as short as tells a few stages apart.

    Args:
        names: Of the layers: paths with dots.
        few: Stages to tell apart; where no part of the paths does, every layer is one.
    """
    paths = [name.split(".") for name in names]
    for length in range(1, max(map(len, paths), default=0) + 1):
        found = [".".join(path[:length]) for path in paths]
        if len(set(found)) >= few:
            return found
    return list(names)


def _of(layers: Sequence[Mapping[str, Any]], names: Sequence[str], name: str) -> Sequence[Mapping[str, Any]]:
    groups: Sequence[Mapping[str, Any]] = layers[names.index(name)]["groups"]
    return groups


def _drawn(group: Mapping[str, Any]) -> DrawnGroup:
    classes = tuple(group.get("classes") or ())
    nodes = group.get("width", len(group.get("nodes") or classes))
    return DrawnGroup(tuple(group["clusters"]), int(nodes), classes, bool(group.get("constant")))


def _stages(names: Sequence[str], most: int) -> dict[str, list[str]]:
    """Return at most `most` stages by name, the last of them the classes."""
    *hidden, last = names
    fine = _by_path(hidden, by_module(hidden))
    while len(fine) <= most - 1 and (finer := _by_path(hidden, by_module(hidden, few=len(fine) + 1))):
        if len(finer) > most - 1:
            break
        fine = finer
    stages = fine if len(fine) <= most - 1 else _in_a_row(fine, most - 1)
    shared = _shared_path(list(stages))
    named = {name.removeprefix(shared): stage for name, stage in stages.items()}
    return {**named, last: [last]}


def _by_path(names: Sequence[str], paths: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, path in zip(names, paths, strict=True):
        found.setdefault(path, []).append(name)
    return found


def _in_a_row(stages: Mapping[str, list[str]], most: int) -> dict[str, list[str]]:
    """Return stages joined with those that follow them, nearly equally many in each."""
    keys, joined = list(stages), dict[str, list[str]]()
    bounds = [len(keys) * number // most for number in range(most + 1)]
    shared = _shared_path(keys)
    for start, end in pairwise(bounds):
        first = keys[start].removeprefix(shared)
        joined[first if end == start + 1 else f"from {first}"] = [
            layer for key in keys[start:end] for layer in stages[key]
        ]
    return joined


def _shared_path(names: Sequence[str]) -> str:
    """Return the modules, with their dots, that all paths begin with."""
    shared = ""
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared += f"{parts[0]}."
    return shared
