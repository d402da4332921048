"""How far a network branches: nodes kept, groups, density, and what belongs to one branch alone.

Everything is a pure function of an architecture and of what its connections cost; nothing here knows torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nas_blockout.architecture import Architecture, Group

NO_BRANCHES = "no branches were learned: nodes were removed"
NEARLY_DENSE = 0.95  # a layer that keeps more of its connections than this separates nothing worth the name
_MOST_LISTED = 8  # layers that a summary names one by one


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What the connections that end in a layer cost.

    Args:
        width: Nodes of the layer in the dense network, or None if that is not known.
        weights: Weights of one connection between two nodes: the area of the kernel.
        positions: Spatial positions at which each weight is used for one image.
        node_parameters: Parameters of a node besides its weights: bias or normalization.
    """

    width: int | None
    weights: int
    positions: int
    node_parameters: int


@dataclass(frozen=True, slots=True)
class GroupCost:
    """What the nodes of a group cost, with the weights that end in them.

    Args:
        macs: Multiply-accumulates an image.
        parameters: Weights, biases and normalization.
    """

    macs: int
    parameters: int


Place = tuple[int, int]  # the number of a layer, and of a group in it


@dataclass(frozen=True, slots=True)
class LayerStructure:
    """How far one layer branches.

    Args:
        name: Of the layer.
        nodes: Nodes that it has.
        dense_nodes: Nodes that it has in the dense network, or None if that is not known.
        groups: Groups of nodes with different memberships.
        density: Share, in (0, 1], of the connections from the nodes of the layers that it reads that exist.
    """

    name: str
    nodes: int
    dense_nodes: int | None
    groups: int
    density: float


@dataclass(frozen=True, slots=True)
class Branch:
    """One cluster as a branch.

    Args:
        cluster: Its number.
        classes: Labels of the classes that belong to it.
        exclusive_macs: Multiply-accumulates an image of the nodes that belong to no other branch, or None if unknown.
        exclusive_parameters: Likewise their parameters.
    """

    cluster: int
    classes: tuple[int, ...]
    exclusive_macs: int | None
    exclusive_parameters: int | None


@dataclass(frozen=True, slots=True)
class Structure:
    """How far a network branches.

    A node belongs to one branch alone if it is in one cluster only and its layer has several groups. A network whose
    kept nodes are all connected has no branches, whatever its clusters are called, and nothing belongs to one alone.

    Args:
        layers: From the image to the classes.
        branches: One for every cluster in use, as of `branch_clusters`.
        macs: Multiply-accumulates an image of all connections, or None if their costs are not known.
        exclusive_macs: Those that belong to one branch alone.
        exclusive_parameters: Parameters that belong to one branch alone.
    """

    layers: tuple[LayerStructure, ...]
    branches: tuple[Branch, ...]
    macs: int | None
    exclusive_macs: int | None
    exclusive_parameters: int | None

    @property
    def is_branched(self) -> bool:
        """Whether some kept node does not read some kept node of a layer that its own layer reads."""
        return any(layer.density < 1 for layer in self.layers)

    @property
    def hardly_branches(self) -> bool:
        """Whether it has branches, but every layer keeps nearly all connections between its kept nodes."""
        return self.is_branched and all(layer.density > NEARLY_DENSE for layer in self.layers)

    @property
    def removed(self) -> int:
        """Nodes of the dense network that were removed, as far as that is known."""
        return sum(max(0, (layer.dense_nodes or 0) - layer.nodes) for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Return the structure as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Structure":
        """Read a structure back from JSON types."""
        layers = tuple(LayerStructure(**layer) for layer in document["layers"])
        branches = tuple(Branch(**{**branch, "classes": tuple(branch["classes"])}) for branch in document["branches"])
        return cls(**{**document, "layers": layers, "branches": branches})


def structure_of(
    architecture: Architecture,
    *,
    costs: Sequence[LayerCost] | None = None,
    inputs: int = 1,
    groups: Mapping[Place, GroupCost] | None = None,
    widths: Mapping[str, int] | None = None,
) -> Structure:
    """Return how far a network branches.

    Args:
        architecture: Of all its layers.
        costs: Of every layer of a chain, the first of which reads the image; None if they are not known.
        inputs: Nodes before the first layer: the channels of the image.
        groups: In place of `costs` what each group costs, in any graph (see `group_costs`).
        widths: With `groups`, the nodes of each layer of the dense network.

    Raises:
        ValueError: The costs are not those of the layers, or costs by layer are given for what is no chain.
    """
    layers = architecture.layers
    if costs is not None and len(costs) != len(layers):
        raise ValueError(f"each of the {len(layers)} layers needs its cost, got {len(costs)}")
    if costs is not None and not architecture.is_chain:
        raise ValueError("costs by layer are those of a chain: give a graph's by group")
    density = _densities(architecture, inputs)
    branched = any(share < 1 for share in density)
    spent = _spent(architecture, costs, inputs) if costs is not None else groups
    clusters = branch_clusters(architecture)
    alone = {
        cluster: [
            place
            for place, group in _places(architecture)
            if branched and {*group.clusters} & {*clusters} == {cluster} and len(layers[place[0]].groups) > 1
        ]
        for cluster in clusters
    }
    branches = tuple(
        Branch(cluster, _classes(architecture, cluster), *_total(spent, places)) for cluster, places in alone.items()
    )
    everywhere = _total(spent, [place for places in alone.values() for place in places])
    macs = sum(cost.macs for cost in spent.values()) if spent is not None else None
    dense = [cost.width for cost in costs] if costs else [(widths or {}).get(layer.name) for layer in layers]
    described = tuple(
        LayerStructure(layer.name, layer.width, width, len(layer.groups), share)
        for layer, width, share in zip(layers, dense, density, strict=True)
    )
    return Structure(described, branches, macs, *everywhere)


def recorded_structure(result: Mapping[str, Any]) -> Structure | None:
    """Return the structure in the result of a trial; of an older one it follows from the architecture, without costs.

    Args:
        result: As plain JSON types.
    """
    if document := result.get("structure"):
        return Structure.from_json(document)
    if document := result.get("architecture"):
        return structure_of(Architecture.from_json(document))
    return None


def in_short(structure: Structure, *, learned: bool) -> str:
    """Return in a few words whether a network branches.

    Args:
        structure: Of the network.
        learned: Whether it was learned; otherwise it was searched for, pruned, or is the dense network.
    """
    if structure.is_branched and not structure.hardly_branches:
        return f"{len(structure.branches)} branches"
    removed = ": nodes were removed" if structure.removed else ""
    if structure.hardly_branches:
        return f"hardly any branches{' were learned' if learned else ''}{removed}"
    if not learned:
        return f"no branches{', nodes were removed' if structure.removed else ''}"
    known = all(layer.dense_nodes is not None for layer in structure.layers)
    return NO_BRANCHES if removed else "no branches were learned" + (", and no node was removed" if known else "")


def summary(structure: Structure, *, learned: bool) -> str:
    """Return in one line how far a network branches.

    Args:
        structure: Of the network.
        learned: Whether it was learned; otherwise it was searched for, pruned, or is the dense network.
    """
    text = in_short(structure, learned=learned)
    cut = [layer for layer in structure.layers if layer.density < 1]
    density = ", ".join(f"{_share(layer.density)} in {layer.name}" for layer in cut)
    if len(cut) > _MOST_LISTED:
        least, most = (_share(of(layer.density for layer in cut)) for of in (min, max))
        density = f"{least} to {most} in {len(cut)} of {len(structure.layers)} layers"
    if structure.hardly_branches:
        return f"{text}; connections kept between nodes {density}, all in other layers"
    if not structure.is_branched:
        return text
    parted = [layer for layer in structure.layers if layer.groups > 1]
    groups = ", ".join(f"{layer.groups} in {layer.name}" for layer in parted)
    if len(parted) > _MOST_LISTED:
        groups = f"up to {max(layer.groups for layer in parted)} in {len(parted)} layers"
    text += f": groups of nodes {groups}; connections kept between nodes {density}"
    if structure.exclusive_macs is not None and structure.macs:
        text += f"; {structure.exclusive_macs / structure.macs:.0%} of the MACs belong to one branch alone"
    return text


def _share(density: float) -> str:
    """Return a share below 1 in percent, never rounded up to all."""
    return f"{min(density, 0.999):.1%}" if density > NEARLY_DENSE else f"{density:.0%}"


def structure_metrics(structure: Structure) -> dict[str, float]:
    """Return the figures of a structure by name, as a tracking server shows them."""
    figures: dict[str, float] = {}
    for layer in structure.layers:
        figures[f"structure/nodes/{layer.name}"] = layer.nodes
        figures[f"structure/groups/{layer.name}"] = layer.groups
        figures[f"structure/density/{layer.name}"] = layer.density
    for name in ("exclusive_macs", "exclusive_parameters"):
        if (value := getattr(structure, name)) is not None:
            figures[f"structure/{name}"] = value
    return figures


def _densities(architecture: Architecture, inputs: int) -> list[float]:
    """Return for each layer the share of the connections over all of its edges that exist.

    Nodes of a rigid layer without clusters stay, but are connected as little as if they had been removed.
    """
    widths = {layer.name: layer.width for layer in architecture.layers}
    connected = {
        layer.name: sum(group.width for group in layer.groups if group.clusters or not layer.rigid)
        for layer in architecture.layers
    }
    all_pairs = dict.fromkeys(widths, 0)
    for source, reader in architecture.edges:
        all_pairs[reader] += inputs * widths[reader] if source is None else connected[source] * connected[reader]
    counts = zip(architecture.weights(inputs), all_pairs.values(), strict=True)
    return [count / pairs if pairs else 1.0 for count, pairs in counts]


def _places(architecture: Architecture) -> list[tuple[Place, Group]]:
    return [
        ((number, position), group)
        for number, layer in enumerate(architecture.layers)
        for position, group in enumerate(layer.groups)
    ]


def branch_clusters(architecture: Architecture) -> list[int]:
    """Return the clusters in use that are branches, ascending.

    In a graph, a cluster that takes in all nodes of every layer in which it occurs separates nothing: it says that
    these layers are connected without masks, and is left out, unless there is no other.
    """
    used = {cluster for _, group in _places(architecture) for cluster in group.clusters}
    clusters = [[group.clusters for group in layer.groups] for layer in architecture.layers]
    return sorted(used) if architecture.is_chain else separating_clusters(clusters)


def separating_clusters(layers: Sequence[Sequence[tuple[int, ...]]]) -> list[int]:
    """Return the clusters that only a part of some layer's nodes belong to, or all in use if there is none.

    Args:
        layers: The clusters of each group, by layer.
    """
    separating = {
        cluster
        for layer in layers
        for cluster in {each for group in layer for each in group}
        if any(group and cluster not in group for group in layer)
    }
    return sorted(separating or {cluster for layer in layers for group in layer for cluster in group})


def _classes(architecture: Architecture, cluster: int) -> tuple[int, ...]:
    last = architecture.layers[-1].groups
    return tuple(sorted(label for group in last if cluster in group.clusters for label in group.classes or ()))


def _spent(architecture: Architecture, costs: Sequence[LayerCost], inputs: int) -> dict[Place, GroupCost]:
    """Return what every group of a chain costs."""
    spent: dict[Place, GroupCost] = {}
    for (number, position), group in _places(architecture):
        before = architecture.layers[number - 1].groups
        if number:
            read = sum(before[source].width for source in architecture.reads(number)[position])
        else:
            read = 0 if group.constant else inputs  # a constant first layer is what is left of one without nodes
        weights, cost = group.width * read * costs[number].weights, costs[number]
        spent[number, position] = GroupCost(weights * cost.positions, weights + group.width * cost.node_parameters)
    return spent


def _total(spent: Mapping[Place, GroupCost] | None, places: Sequence[Place]) -> tuple[int, int] | tuple[None, None]:
    if spent is None:
        return None, None
    return sum(spent[place].macs for place in places), sum(spent[place].parameters for place in places)
