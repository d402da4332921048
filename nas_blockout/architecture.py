"""The architecture: a frozen, JSON-able value that says which groups each layer has and which clusters they share.

It is what search samples, what distillation produces and what the `branched` backbone builds. Nothing here knows torch.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from nas_blockout.canonical_form import canonical_form

SCHEMA_OF_CHAINS = 1
SCHEMA_OF_GRAPHS = 2

Edge = tuple[str | None, str]  # the layer that is read, or None for the image; the layer that reads it


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes of one layer that belong to the same clusters.

    Args:
        clusters: Clusters that every node of the group belongs to; sorted, without repeats, at least one unless the
            group is constant.
        width: Nodes in the group, 1 or more.
        classes: For a group of the class layer the class of each node, sorted; else None.
        constant: Whether the group shares a cluster with nothing that it could read, so that its nodes are the same for
            every image: their bias, through their own batch normalization. Nodes without clusters in a rigid layer
            that reads the image are called constant, too, although no mask keeps the image from them.
        nodes: Which nodes of the whole network's layer they are, sorted; None where that makes no difference. The
            classes say it by `classes`. It is no part of the canonical name.
    """

    clusters: tuple[int, ...]
    width: int
    classes: tuple[int, ...] | None = None
    constant: bool = False
    nodes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if list(self.clusters) != sorted(set(self.clusters)) or not (self.clusters or self.constant):
            raise ValueError(f"clusters of a group must be sorted, distinct and at least one, got {self.clusters}")
        if self.width < 1:
            raise ValueError(f"width of a group must be at least 1, got width={self.width}")
        if self.classes is not None and list(self.classes) != sorted(set(self.classes)):
            raise ValueError(f"classes of a group must be sorted and distinct, got {self.classes}")
        if self.classes is not None and len(self.classes) != self.width:
            raise ValueError(f"a group of classes has one node a class, got {len(self.classes)} for width={self.width}")
        if self.nodes is not None and (list(self.nodes) != sorted(set(self.nodes)) or len(self.nodes) != self.width):
            raise ValueError(f"nodes of a group must be sorted, distinct and width={self.width} many, got {self.nodes}")
        if self.nodes is not None and (self.classes is not None or self.nodes[0] < 0):
            raise ValueError(f"nodes must be numbers from 0 on, and classes need none, got {self.nodes}")

    def overlap(self, other: "Group") -> int:
        """Return the number of clusters that two groups share."""
        return len(set(self.clusters) & set(other.clusters))


@dataclass(frozen=True, slots=True)
class Layer:
    """A named layer of nodes, split into groups of different memberships.

    Args:
        name: Of the layer.
        groups: At least one; no two have the same clusters.
        rigid: Whether all nodes of the layer stay, in their order, because something reads their values otherwise than
            by a weight. Those without a cluster form a constant group.
    """

    name: str
    groups: tuple[Group, ...]
    rigid: bool = False

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
    """A hierarchical network as groups of nodes: a group reads the groups of its layer's sources that share a cluster.

    Layers form a graph, which may have cycles: a residual stream is written by layers that read it. In a chain each
    layer reads the one before, and the first one the image or what precedes it.

    Args:
        clusters: Number of clusters, 1 or more; one cluster is a dense network.
        layers: In the order in which they are first written, the classes last.
        edges: Which layer reads which: pairs of a source, or None for the image, and its reader. None given: the layers
            form a chain, whose edges are filled in. They are kept in the order of the readers.

    Raises:
        ValueError: A cluster lies outside ``0..clusters-1``, layers repeat a name, edges name no layer or repeat, or a
            layer cannot be reached from the image; a group reads nothing although it is not constant, or something
            although it is; no class is reached from a group that is not of a rigid layer (unless all that could read it
            is constant), or the last layer does not hold every class exactly once.

    References:
        Murdock, Li, Zhou, Duerig. Blockout: Dynamic Model Selection for Hierarchical Deep Networks. CVPR 2016, section
        4.
    """

    clusters: int
    layers: tuple[Layer, ...]
    edges: tuple[Edge, ...] = ()

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
        object.__setattr__(self, "edges", _ordered(self.edges or _chain(names), names))
        _check_reads(self)
        _check_readers(self)

    def _check_classes(self) -> None:
        for layer in self.layers[:-1]:
            if any(group.classes is not None for group in layer.groups):
                raise ValueError(f"only the last layer holds classes, but layer {layer.name!r} has some")
        classes_of_groups = [group.classes for group in self.layers[-1].groups]
        flat = sorted(label for classes in classes_of_groups for label in classes or ())
        if None in classes_of_groups or flat != list(range(len(flat))):
            raise ValueError(f"the last layer must hold every class 0..n-1 exactly once, got {classes_of_groups}")
        if self.layers[-1].rigid:
            raise ValueError(f"the classes all stay: their layer {self.layers[-1].name!r} must not be called rigid")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.layers[-1].width

    @property
    def is_chain(self) -> bool:
        """Whether each layer reads the one before and nothing else, and no layer is rigid: what schema 1 describes."""
        names = [layer.name for layer in self.layers]
        return self.edges == _chain(names) and not any(layer.rigid for layer in self.layers)

    @property
    def is_dense(self) -> bool:
        """Whether every layer is one group that reads all of its sources, so that the network has no branches."""
        if any(len(layer.groups) > 1 or layer.groups[0].constant for layer in self.layers):
            return False
        only = {layer.name: layer.groups[0] for layer in self.layers}
        return all(only[source].overlap(only[reader]) for source, reader in self.edges if source is not None)

    @property
    def hash(self) -> str:
        """Canonical name: 16 hexadecimal digits that ignore the numbering of clusters and the order of groups."""
        form = canonical_form(
            [[(group.clusters, group.width, group.classes or ()) for group in layer.groups] for layer in self.layers]
        )
        named: list[Any] = [[layer.name, groups] for layer, groups in zip(self.layers, form, strict=True)]
        if not self.is_chain:
            named = [named, self.edges, [layer.name for layer in self.layers if layer.rigid]]
        return hashlib.sha256(json.dumps(named, separators=(",", ":")).encode()).hexdigest()[:16]

    def sources(self, name: str) -> tuple[str | None, ...]:
        """Return the layers that a layer reads, in order; None stands for the image and comes first."""
        return tuple(source for source, reader in self.edges if reader == name)

    def reads(self, layer: int | str, source: str | None = None) -> tuple[tuple[int, ...], ...]:
        """Return, for each group of a layer, the positions of the groups of another layer that it reads.

        Args:
            layer: The reader, by position or name.
            source: Name of the layer that is read; it may be left out where there is one.

        Raises:
            ValueError: The layer does not read `source`, or `source` is left out and it reads several layers or none.
        """
        reader = self.layers[layer] if isinstance(layer, int) else self._layer(layer)
        known = [name for name in self.sources(reader.name) if name is not None]
        if (source is None and len(known) != 1) or (source is not None and source not in known):
            raise ValueError(f"source must be one of the layers that {reader.name!r} reads, {known}, got {source!r}")
        before = self._layer(known[0] if source is None else source).groups
        return tuple(
            tuple(position for position, read in enumerate(before) if group.overlap(read)) for group in reader.groups
        )

    def pairs(self, inputs: int) -> dict[Edge, int]:
        """Return the pairs of nodes that each edge connects.

        Args:
            inputs: Nodes of what the layers read that read the image, such as its channels.
        """
        counts: dict[Edge, int] = {}
        for source, name in self.edges:
            reader = self._layer(name)
            if source is None:
                counts[source, name] = inputs * sum(group.width for group in reader.groups if self._sees(reader, group))
                continue
            before = self._layer(source).groups
            counts[source, name] = sum(
                group.width * sum(before[position].width for position in positions)
                for group, positions in zip(reader.groups, self.reads(name, source), strict=True)
            )
        return counts

    def weights(self, inputs: int) -> tuple[int, ...]:
        """Return the node-to-node connections that end in each layer, over all of its edges.

        Args:
            inputs: As of `pairs`.
        """
        counts = dict.fromkeys((layer.name for layer in self.layers), 0)
        for (_, reader), count in self.pairs(inputs).items():
            counts[reader] += count
        return tuple(counts.values())

    def _sees(self, layer: Layer, group: Group) -> bool:
        """Whether the nodes of a group of a layer that reads the image do read it.

        Images are not masked: in a graph every node of such a layer reads them that is not the mere placeholder of a
        layer of which nothing is left. In a chain, constants do not.
        """
        whole = layer.rigid or (layer is self.layers[-1] and not self.is_chain)
        return not group.constant or whole

    def to_json(self) -> dict[str, Any]:
        """Return the value as plain JSON types: version 2 for a graph or groups with `nodes`, else version 1."""
        layers = [
            {
                "name": layer.name,
                "groups": [_group_json(group) for group in layer.groups],
                **({"rigid": True} if layer.rigid else {}),
            }
            for layer in self.layers
        ]
        if self.is_chain and not any(group.nodes for layer in self.layers for group in layer.groups):
            return {"schema_version": SCHEMA_OF_CHAINS, "clusters": self.clusters, "layers": layers}
        edges = [list(edge) for edge in self.edges]
        return {"schema_version": SCHEMA_OF_GRAPHS, "clusters": self.clusters, "layers": layers, "edges": edges}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Architecture":
        """Read the value back from JSON types, of schema version 1 or 2.

        Raises:
            ValueError: The document has another schema version, a missing or unknown key, or describes no valid
                network.
        """
        _require_keys(document, {"schema_version", "clusters", "layers"}, {"edges"})
        version = document["schema_version"]
        if version not in (SCHEMA_OF_CHAINS, SCHEMA_OF_GRAPHS) or isinstance(version, bool):
            raise ValueError(
                f"architecture schema_version must be {SCHEMA_OF_CHAINS} or {SCHEMA_OF_GRAPHS}, got {version!r}"
            )
        graph = version == SCHEMA_OF_GRAPHS
        _require_keys(document, {"schema_version", "clusters", "layers", *(["edges"] if graph else [])}, set())
        layers = tuple(_layer_from(layer, graph=graph) for layer in document["layers"])
        edges = tuple(_edge_from(edge) for edge in document["edges"]) if graph else ()
        if graph and not edges:
            raise ValueError("edges must say which layer reads which, got none")
        return cls(_whole(document["clusters"], "clusters"), layers, edges)

    def _layer(self, name: str) -> Layer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise ValueError(f"there is no layer {name!r}; there are {[layer.name for layer in self.layers]}")


def dense_architecture(
    names: Sequence[str], widths: Sequence[int], *, edges: Sequence[Edge] = (), rigid: Collection[str] = ()
) -> Architecture:
    """Return the architecture with one cluster: every layer is one group that reads all of each of its sources.

    Args:
        names: Of the layers, the classes last.
        widths: Their nodes.
        edges: Which layer reads which; none given for a chain.
        rigid: Layers that are rigid; the classes among them are passed over.
    """
    hidden = [
        Layer(name, (Group((0,), width),), name in rigid) for name, width in zip(names[:-1], widths[:-1], strict=True)
    ]
    last = Layer(names[-1], (Group((0,), widths[-1], tuple(range(widths[-1]))),))
    return Architecture(1, (*hidden, last), tuple(edges))


def _chain(names: Sequence[str]) -> tuple[Edge, ...]:
    return ((None, names[0]), *pairwise(names))


def _ordered(edges: Iterable[Edge], names: Sequence[str]) -> tuple[Edge, ...]:
    """Return edges in the order of their readers, then of their sources.

    Raises:
        ValueError: They name no layer, repeat, or leave a layer that the image does not reach.
    """
    place: dict[str | None, int] = {None: -1, **{name: number for number, name in enumerate(names)}}
    given = [(source, reader) for source, reader in edges]
    for source, reader in given:
        if source not in place or reader not in place or reader is None:
            raise ValueError(f"an edge must connect layers, or the image to one, got {(source, reader)}; {list(names)}")
    if len(set(given)) < len(given):
        repeated = next(edge for number, edge in enumerate(given) if edge in given[:number])
        raise ValueError(f"each edge must be given once, got {repeated} again")
    given.sort(key=lambda edge: (place[edge[1]], place[edge[0]]))
    reached: set[str | None] = {None}
    while found := {reader for source, reader in given if source in reached} - reached:
        reached |= found
    if missing := [name for name in names if name not in reached]:
        raise ValueError(f"no edges lead from the image to layer {missing[0]!r}: give those of what it reads")
    return tuple(given)


def _masks(architecture: Architecture) -> dict[str, list[int]]:
    """Return the clusters of every group as bits of a number."""
    return {
        layer.name: [sum(1 << cluster for cluster in group.clusters) for group in layer.groups]
        for layer in architecture.layers
    }


def _union(masks: Iterable[int]) -> int:
    union = 0
    for mask in masks:
        union |= mask
    return union


def _check_reads(architecture: Architecture) -> None:
    """Check that a group is constant exactly where it reads nothing.

    It would say no more to ask whether the image reaches a group over what it reads: every layer is reached from the
    image, and a group begins as a constant where the way to it is cut.
    """
    masks = _masks(architecture)
    present = {name: _union(each) for name, each in masks.items()}
    sources: dict[str, list[str | None]] = {name: [] for name in masks}
    for source, reader in architecture.edges:
        sources[reader].append(source)
    for layer in architecture.layers:
        images, known = None in sources[layer.name], [name for name in sources[layer.name] if name is not None]
        told = f"layer {known[0]!r}" if len(known) == 1 else f"any of {known}, which it could read"
        available = _union(present[name] for name in known)
        for group, mask in zip(layer.groups, masks[layer.name], strict=True):
            if images and group.constant and group.clusters:
                raise ValueError(
                    f"layer {layer.name!r} reads the input: a constant group in it has no clusters, "
                    f"got {group.clusters}"
                )
            if group.constant and mask & available:
                raise ValueError(
                    f"constant group {group.clusters} of layer {layer.name!r} shares a cluster with {told}"
                )
            if not (images or group.constant or mask & available):
                raise ValueError(f"group {group.clusters} of layer {layer.name!r} shares no cluster with {told}")


def _check_readers(architecture: Architecture) -> None:
    """Check that every group is read on a way to the classes, unless it stays all the same."""
    masks, readers = _masks(architecture), _readers(architecture)
    stays = {layer.name for layer in architecture.layers if _stays(layer, readers[layer.name], architecture)}
    wanted = _wanted(masks, readers, stays)
    for layer in architecture.layers:
        for group, mask in zip(layer.groups, masks[layer.name], strict=True):
            if layer.name not in stays and not mask & wanted[layer.name]:
                names = [reader.name for reader in readers[layer.name]]
                told = f"nothing in {names[0]!r}" if len(names) == 1 else f"nothing on a way to the classes, of {names}"
                raise ValueError(f"group {group.clusters} of layer {layer.name!r} is read by {told}")


def _readers(architecture: Architecture) -> dict[str, list[Layer]]:
    layers = {layer.name: layer for layer in architecture.layers}
    readers: dict[str, list[Layer]] = {name: [] for name in layers}
    for source, reader in architecture.edges:
        if source is not None:
            readers[source].append(layers[reader])
    return readers


def _stays(layer: Layer, readers: Sequence[Layer], architecture: Architecture) -> bool:
    """Whether the groups of a layer may go unread.

    The classes and rigid layers count otherwise than by being read. Of a layer of which nothing is left a placeholder
    stays; and so does what only constants could read, to which it gives the number and the size of the images.
    """
    placeholder = len(layer.groups) == 1 and not layer.groups[0].clusters
    constants = bool(readers) and all(group.constant for reader in readers for group in reader.groups)
    return layer.rigid or layer is architecture.layers[-1] or placeholder or constants


def _wanted(
    masks: dict[str, list[int]], readers: Mapping[str, Sequence[Layer]], stays: Collection[str]
) -> dict[str, int]:
    """Return the clusters in which each layer is read on a way to one that stays: a least fixed point over the edges.

    It starts from nothing, so that layers which only read each other keep nothing.
    """
    wanted, changed = dict.fromkeys(masks, 0), True
    while changed:
        changed = False
        for name in reversed(masks):
            found = _union(
                mask
                for reader in readers[name]
                for mask in masks[reader.name]
                if reader.name in stays or mask & wanted[reader.name]
            )
            changed |= found != wanted[name]
            wanted[name] = found
    return wanted


def _group_json(group: Group) -> dict[str, Any]:
    document: dict[str, Any] = {"clusters": list(group.clusters)}
    if group.classes is not None:
        document["classes"] = list(group.classes)
    elif group.nodes is not None:
        document["nodes"] = list(group.nodes)
    else:
        document["width"] = group.width
    return document | ({"constant": True} if group.constant else {})


def _layer_from(document: Mapping[str, Any], *, graph: bool) -> Layer:
    _require_keys(document, {"name", "groups"}, {"rigid"} if graph else set())
    rigid = document.get("rigid", False)
    if not isinstance(rigid, bool):
        raise ValueError(f"rigid must be true or false, got {rigid!r}")
    return Layer(str(document["name"]), tuple(_group_from(group, graph=graph) for group in document["groups"]), rigid)


def _edge_from(document: Any) -> Edge:
    names = list(document) if isinstance(document, Sequence) and not isinstance(document, str) else []
    if len(names) != 2 or not isinstance(names[0], str | None) or not isinstance(names[1], str):
        raise ValueError(
            f"an edge must be the name of a layer that is read, or null for the image, and of the layer that reads it, "
            f"got {document!r}"
        )
    return names[0], names[1]


def _group_from(document: Mapping[str, Any], *, graph: bool) -> Group:
    _require_keys(document, {"clusters"}, {"width", "classes", "constant", *(["nodes"] if graph else [])})
    clusters = tuple(_whole(cluster, "cluster") for cluster in document["clusters"])
    constant = document.get("constant", False)
    if not isinstance(constant, bool):
        raise ValueError(f"constant must be true or false, got {constant!r}")
    if "classes" in document:
        classes = tuple(_whole(label, "class") for label in document["classes"])
        return Group(clusters, _whole(document.get("width", len(classes)), "width"), classes, constant)
    if "nodes" in document:
        nodes = tuple(_whole(node, "node") for node in document["nodes"])
        return Group(clusters, _whole(document.get("width", len(nodes)), "width"), None, constant, nodes)
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
