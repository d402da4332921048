"""The architecture: a frozen, JSON-able value that says which groups each layer has and which clusters they share.

It is what search samples, what distillation produces and what the `branched` backbone builds. Nothing here knows torch.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

SCHEMA_VERSION = 1

Partition = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes of one layer that belong to the same clusters.

    Args:
        clusters: Clusters that every node of the group belongs to; sorted, without repeats, at least one unless the
            group is constant.
        width: Nodes in the group, 1 or more.
        classes: For a group of the class layer the class of each node, sorted; else None.
        constant: Whether the group reads nothing, so that its nodes are the same for every image: their bias, through
            their own batch normalization.
    """

    clusters: tuple[int, ...]
    width: int
    classes: tuple[int, ...] | None = None
    constant: bool = False

    def __post_init__(self) -> None:
        if list(self.clusters) != sorted(set(self.clusters)) or not (self.clusters or self.constant):
            raise ValueError(f"clusters of a group must be sorted, distinct and at least one, got {self.clusters}")
        if self.width < 1:
            raise ValueError(f"width of a group must be at least 1, got width={self.width}")
        if self.classes is not None and list(self.classes) != sorted(set(self.classes)):
            raise ValueError(f"classes of a group must be sorted and distinct, got {self.classes}")
        if self.classes is not None and len(self.classes) != self.width:
            raise ValueError(f"a group of classes has one node a class, got {len(self.classes)} for width={self.width}")

    def overlap(self, other: "Group") -> int:
        """Return the number of clusters that two groups share."""
        return len(set(self.clusters) & set(other.clusters))


@dataclass(frozen=True, slots=True)
class Layer:
    """A named layer of nodes, split into groups of different memberships."""

    name: str
    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError(f"layer {self.name!r} must have at least one group")
        memberships = [group.clusters for group in self.groups]
        if len(set(memberships)) != len(memberships):
            raise ValueError(f"groups of layer {self.name!r} must differ in their clusters, got {memberships}")

    @property
    def width(self) -> int:
        """Nodes in the layer."""
        return sum(group.width for group in self.groups)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A hierarchical network as groups of nodes: a group reads the groups of the layer before that share a cluster.

    Args:
        clusters: Number of clusters, 1 or more; one cluster is a dense network.
        layers: From the first layer with memberships to the classes.

    Raises:
        ValueError: A cluster lies outside ``0..clusters-1``, layers repeat a name, a group reads nothing although it is
            not constant, or something although it is, or is read by nothing (unless the whole layer after is
            constant), or the last layer does not hold every class exactly once.

    References:
        Murdock, Li, Zhou, Duerig. Blockout: Dynamic Model Selection for Hierarchical Deep Networks. CVPR 2016, section
        4.
    """

    clusters: int
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        if self.clusters < 1:
            raise ValueError(f"clusters must be at least 1, got clusters={self.clusters}")
        names = [layer.name for layer in self.layers]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"an architecture needs layers with different names, got {names}")
        for layer in self.layers:
            for group in layer.groups:
                if any(not 0 <= cluster < self.clusters for cluster in group.clusters):
                    raise ValueError(
                        f"clusters of layer {layer.name!r} must lie in 0..{self.clusters - 1}, got {group.clusters}"
                    )
        self._check_classes()
        if wrong := [group.clusters for group in self.layers[0].groups if group.constant and group.clusters]:
            raise ValueError(
                f"layer {names[0]!r} reads the input: a constant group in it has no clusters, got {wrong[0]}"
            )
        for before, after in pairwise(self.layers):
            _check_reads(before, after)

    def _check_classes(self) -> None:
        for layer in self.layers[:-1]:
            if any(group.classes is not None for group in layer.groups):
                raise ValueError(f"only the last layer holds classes, but layer {layer.name!r} has some")
        classes_of_groups = [group.classes for group in self.layers[-1].groups]
        flat = sorted(label for classes in classes_of_groups for label in classes or ())
        if None in classes_of_groups or flat != list(range(len(flat))):
            raise ValueError(f"the last layer must hold every class 0..n-1 exactly once, got {classes_of_groups}")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.layers[-1].width

    @property
    def is_dense(self) -> bool:
        """Whether every layer is one group that reads the whole layer before, so that the network has no branches."""
        return all(len(layer.groups) == 1 and not layer.groups[0].constant for layer in self.layers)

    @property
    def hash(self) -> str:
        """Canonical name: 16 hexadecimal digits that ignore the numbering of clusters and the order of groups."""
        text = json.dumps(_canonical(self), separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def reads(self, index: int) -> tuple[tuple[int, ...], ...]:
        """Return, for each group of layer `index` (1 or more), the positions of the groups that it reads."""
        before = self.layers[index - 1].groups
        return tuple(
            tuple(position for position, source in enumerate(before) if group.overlap(source))
            for group in self.layers[index].groups
        )

    def weights(self, inputs: int) -> tuple[int, ...]:
        """Return the node-to-node connections that end in each layer; the first layer reads all `inputs` nodes."""
        counts = [inputs * sum(group.width for group in self.layers[0].groups if not group.constant)]
        for index in range(1, len(self.layers)):
            before, groups = self.layers[index - 1].groups, self.layers[index].groups
            read = (sum(before[position].width for position in reads) for reads in self.reads(index))
            counts.append(sum(group.width * nodes for group, nodes in zip(groups, read, strict=True)))
        return tuple(counts)

    def to_json(self) -> dict[str, Any]:
        """Return the value as plain JSON types (schema version 1)."""
        layers = [
            {"name": layer.name, "groups": [_group_json(group) for group in layer.groups]} for layer in self.layers
        ]
        return {"schema_version": SCHEMA_VERSION, "clusters": self.clusters, "layers": layers}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Architecture":
        """Read the value back from JSON types.

        Raises:
            ValueError: The document has another schema version, a missing or unknown key, or describes no valid
                network.
        """
        _require_keys(document, {"schema_version", "clusters", "layers"}, set())
        if document["schema_version"] != SCHEMA_VERSION:
            raise ValueError(
                f"architecture schema_version must be {SCHEMA_VERSION}, got {document['schema_version']!r}"
            )
        return cls(_whole(document["clusters"], "clusters"), tuple(_layer_from(layer) for layer in document["layers"]))


def dense_architecture(names: Sequence[str], widths: Sequence[int]) -> Architecture:
    """Return the architecture with one cluster: every layer is one group that reads the whole layer before."""
    hidden = [Layer(name, (Group((0,), width),)) for name, width in zip(names[:-1], widths[:-1], strict=True)]
    last = Layer(names[-1], (Group((0,), widths[-1], tuple(range(widths[-1]))),))
    return Architecture(1, (*hidden, last))


def _check_reads(before: Layer, after: Layer) -> None:
    for group in after.groups:
        reads = any(group.overlap(source) for source in before.groups)
        if reads and group.constant:
            raise ValueError(
                f"constant group {group.clusters} of layer {after.name!r} shares a cluster with layer {before.name!r}"
            )
        if not reads and not group.constant:
            raise ValueError(
                f"group {group.clusters} of layer {after.name!r} shares no cluster with layer {before.name!r}"
            )
    if all(group.constant for group in after.groups):
        return  # nothing before can matter, but it stays: it gives the constants the number and size of the images
    for source in before.groups:
        if not any(source.overlap(group) for group in after.groups):
            raise ValueError(f"group {source.clusters} of layer {before.name!r} is read by nothing in {after.name!r}")


def _group_json(group: Group) -> dict[str, Any]:
    nodes = {"width": group.width} if group.classes is None else {"classes": list(group.classes)}
    return {"clusters": list(group.clusters), **nodes, **({"constant": True} if group.constant else {})}


def _layer_from(document: Mapping[str, Any]) -> Layer:
    _require_keys(document, {"name", "groups"}, set())
    return Layer(str(document["name"]), tuple(_group_from(group) for group in document["groups"]))


def _group_from(document: Mapping[str, Any]) -> Group:
    _require_keys(document, {"clusters"}, {"width", "classes", "constant"})
    clusters = tuple(_whole(cluster, "cluster") for cluster in document["clusters"])
    constant = document.get("constant", False)
    if not isinstance(constant, bool):
        raise ValueError(f"constant must be true or false, got {constant!r}")
    if "classes" in document:
        classes = tuple(_whole(label, "class") for label in document["classes"])
        return Group(clusters, _whole(document.get("width", len(classes)), "width"), classes, constant)
    if "width" not in document:
        raise ValueError(f"a group needs a width or classes, got {dict(document)}")
    return Group(clusters, _whole(document["width"], "width"), constant=constant)


def _whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{what} must be a whole number, got {value!r}")
    return value


def _require_keys(document: Any, required: set[str], optional: set[str]) -> None:
    if not isinstance(document, Mapping):
        raise ValueError(f"expected an object with keys {sorted(required)}, got {document!r}")
    if missing := required - set(document):
        raise ValueError(f"missing key {sorted(missing)[0]!r} in {dict(document)}")
    if unknown := set(document) - required - optional:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r}; known are {sorted(required | optional)}")


def _canonical(architecture: Architecture) -> list[Any]:
    """Return the smallest serialized form over all numberings of the clusters that are used.

    Clusters are told apart by refinement (which groups they belong to, and with whom); only those that refinement
    cannot tell apart are permuted, one cell at a time, and of symmetric ones a single one is tried, as in McKay's
    canonical labeling.

    References:
        McKay. Practical Graph Isomorphism. Congressus Numerantium 30, 1981.
    """
    used = sorted({cluster for layer in architecture.layers for group in layer.groups for cluster in group.clusters})
    return _smallest(architecture, _refine(architecture, (tuple(used),)))


def _smallest(architecture: Architecture, cells: Partition) -> list[Any]:
    # The first cell that refinement left undecided. Its clusters are singled out one by one; the smallest form wins.
    tied = next((position for position, cell in enumerate(cells) if len(cell) > 1), None)
    if tied is None:
        return _serialize(architecture, {cell[0]: number for number, cell in enumerate(cells)})
    cell = cells[tied]
    if _interchangeable(architecture, cell):
        return _smallest(architecture, (*cells[:tied], *((cluster,) for cluster in cell), *cells[tied + 1 :]))
    branches = []
    for chosen in _one_of_each_orbit(architecture, cells, cell):
        rest = tuple(cluster for cluster in cell if cluster != chosen)
        branches.append(
            _smallest(architecture, _refine(architecture, (*cells[:tied], (chosen,), rest, *cells[tied + 1 :])))
        )
    return min(branches)


def _one_of_each_orbit(architecture: Architecture, cells: Partition, cell: tuple[int, ...]) -> list[int]:
    """Return the clusters of a cell to try, one of each orbit of the symmetries that keep all cells.

    A symmetry maps the numberings that begin with one cluster of an orbit onto those that begin with another, and both
    have the same smallest form. Without this, k clusters in symmetric branches cost k! numberings.
    """
    try:
        import igraph  # its BLISS finds symmetries; imported here, since most processes never meet one
    except ImportError:  # a machine with an installation of its own: the same name, only slower
        return list(cell)
    # As a bipartite graph: a vertex for every cluster and every group, an edge where a cluster has a group. Colors keep
    # cells apart, and groups of another layer, width or classes: a symmetry may only exchange what is alike.
    groups = [(number, group) for number, layer in enumerate(architecture.layers) for group in layer.groups]
    kinds = sorted({(number, group.width, group.classes or ()) for number, group in groups})
    clusters = {cluster: vertex for vertex, cluster in enumerate(cluster for each in cells for cluster in each)}
    edges = [
        (clusters[cluster], len(clusters) + vertex)
        for vertex, (_, group) in enumerate(groups)
        for cluster in group.clusters
    ]
    colors = [number for number, each in enumerate(cells) for _ in each]
    colors += [len(cells) + kinds.index((number, group.width, group.classes or ())) for number, group in groups]
    graph = igraph.Graph(len(colors), edges)
    symmetries = graph.automorphism_group(color=colors)  # generators of all of them
    images = [pair for symmetry in symmetries for pair in enumerate(symmetry)]
    # Vertices that some symmetry maps onto each other are connected: the components are the orbits.
    orbits = igraph.Graph(len(colors), images).connected_components().membership
    return list({orbits[clusters[cluster]]: cluster for cluster in reversed(cell)}.values())


def _interchangeable(architecture: Architecture, cell: Iterable[int]) -> bool:
    """Whether all clusters of a cell belong to exactly the same groups, so that their order cannot matter."""
    members = set(cell)
    # Permuting clusters that always occur together changes nothing, so one order stands for all k! of them.
    groups = (set(group.clusters) & members for layer in architecture.layers for group in layer.groups)
    return all(shared in (set(), members) for shared in groups)


def _refine(architecture: Architecture, cells: Partition) -> Partition:
    groups_of = _groups_of(architecture)
    while True:
        color = {cluster: number for number, cell in enumerate(cells) for cluster in cell}
        split: list[tuple[int, ...]] = []
        for cell in cells:
            by_signature: dict[str, list[int]] = {}  # by JSON text, since lists cannot be keys
            for cluster in cell:
                by_signature.setdefault(json.dumps(_signature(groups_of[cluster], color)), []).append(cluster)
            split.extend(tuple(by_signature[signature]) for signature in sorted(by_signature))
        if len(split) == len(cells):  # a round that splits nothing is the last
            return cells
        cells = tuple(split)


@lru_cache(maxsize=1)  # asked again and again for the same architecture while its hash is found
def _groups_of(architecture: Architecture) -> Mapping[int, Sequence[Sequence[Group]]]:
    """Return, for every cluster, the groups of each layer that belong to it."""
    used = {cluster for layer in architecture.layers for group in layer.groups for cluster in group.clusters}
    return {
        cluster: [[group for group in layer.groups if cluster in group.clusters] for layer in architecture.layers]
        for cluster in used
    }


def _signature(groups: Sequence[Sequence[Group]], color: Mapping[int, int]) -> list[Any]:
    return [
        sorted(
            [group.width, list(group.classes or ()), sorted(color[other] for other in group.clusters)]
            for group in layer
        )
        for layer in groups
    ]


def _serialize(architecture: Architecture, number: Mapping[int, int]) -> list[Any]:
    return [
        [
            layer.name,
            sorted(
                [sorted(number[cluster] for cluster in group.clusters), group.width, list(group.classes or ())]
                for group in layer.groups
            ),
        ]
        for layer in architecture.layers
    ]
