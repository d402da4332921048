"""What an exported model is made of: its layers and groups, inputs, parameters and cost of each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load
from torch import Tensor

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.export.model_dir import NETWORK
from nas_blockout.export.prediction import ExportedModel
from nas_blockout.export.subprocess_check import current_names, load_program
from nas_blockout.structure.branching import LayerCost, Structure, branch_clusters, structure_of

_WEIGHT = ".operations.0.weight"


@dataclass(frozen=True, slots=True)
class GroupOutline:
    """One group of nodes.

    Args:
        clusters: That it belongs to; none in the trunk before the first branches, of constants that nothing reads, or
            of nodes of a graph that are connected without masks alone.
        width: Nodes.
        classes: Names of its classes, in the last layer.
        reads: Nodes that it reads, of the layer before or of all that its layer reads, and channels of the image.
        parameters: Weights, and bias or normalization.
        macs: Multiply-accumulates an image.
        constant: Whether it reads nothing, so that its nodes are the same for every image.
    """

    clusters: tuple[int, ...]
    width: int
    classes: tuple[str, ...]
    reads: int
    parameters: int
    macs: int
    constant: bool = False


@dataclass(frozen=True, slots=True)
class LayerOutline:
    """A layer by name, and its groups."""

    name: str
    groups: tuple[GroupOutline, ...]


def outline(model: ExportedModel) -> list[LayerOutline]:
    """Return the layers of an exported model from the image on; nothing for one that is not built from groups of nodes.

    Args:
        model: Its weights, architecture and program are read, or what is recorded of the costs in a graph.
    """
    architecture = json.loads(model.content("architecture.json"))
    if NETWORK in model.files and (costs := model.json(NETWORK).get("costs")):
        return _of_graph(Architecture.from_json(architecture), costs, model)
    weights = current_names(load(model.content("weights.safetensors")))
    positions = _positions(model)
    if not architecture or not positions:
        return []
    groups: Mapping[str, Sequence[Any]] = {layer["name"]: layer["groups"] for layer in architecture["layers"]}
    layers: list[LayerOutline] = []
    for name in positions:
        stage = _Stage(weights, f"stages.{name}", positions[name])
        before = layers[-1].groups if layers else ()
        if name in groups:
            made = tuple(stage.group(group, before, model.class_names) for group in groups[name])
        else:
            made = (stage.trunk(),)
        layers.append(LayerOutline(name, made))
    return layers


def _of_graph(
    architecture: Architecture, costs: Mapping[str, Sequence[Mapping[str, int]]], model: ExportedModel
) -> list[LayerOutline]:
    branches, names = set(branch_clusters(architecture)), model.class_names
    groups = {layer.name: layer.groups for layer in architecture.layers}
    layers = []
    for layer in architecture.layers:
        sources, made = architecture.sources(layer.name), []
        for position, group in enumerate(layer.groups):
            known = [
                groups[source][each]
                for source in sources
                if source
                for each in architecture.reads(layer.name, source)[position]
            ]
            whole = layer.rigid or layer is architecture.layers[-1]
            images = model.preprocessing["channels"] if None in sources and (whole or not group.constant) else 0
            made.append(
                GroupOutline(
                    tuple(each for each in group.clusters if each in branches),
                    group.width,
                    tuple(names[label] for label in group.classes or ()),
                    sum(each.width for each in known) + images,
                    costs[layer.name][position]["parameters"],
                    costs[layer.name][position]["macs"],
                    group.constant,
                )
            )
        layers.append(LayerOutline(layer.name, tuple(made)))
    return layers


def structure_in(model: ExportedModel) -> Structure | None:
    """Return how far an exported model branches, or None for one that is not built from groups of nodes.

    Args:
        model: Of one that was exported without its structure, weights, architecture and program are read.
    """
    if recorded := model.manifest.get("structure"):
        return Structure.from_json(recorded)
    document = json.loads(model.content("architecture.json"))
    positions = _positions(model) if document else {}
    if not positions:
        return None
    weights, branching = current_names(load(model.content("weights.safetensors"))), Architecture.from_json(document)
    stages = {name: _Stage(weights, f"stages.{name}", positions[name]) for name in positions}
    everywhere, named = tuple(range(branching.clusters)), {layer.name for layer in branching.layers}
    trunk = [Layer(name, (Group(everywhere, len(stage.first)),)) for name, stage in stages.items() if name not in named]
    first, *_ = stages.values()
    costs = [stage.cost for stage in stages.values()]
    whole = Architecture(branching.clusters, (*trunk, *branching.layers))
    return structure_of(whole, costs=costs, inputs=first.first.shape[1])


@dataclass(frozen=True, slots=True)
class _Stage:
    weights: Mapping[str, Tensor]
    name: str
    positions: int

    @property
    def first(self) -> Tensor:
        return self.weights[self.name + _WEIGHT]

    @property
    def cost(self) -> LayerCost:
        area = self.first.shape[2] ** 2 if self.first.dim() == 4 else 1
        return LayerCost(None, area, self.positions, 1 + (f"{self.name}.normalize.weight" in self.weights))

    def made(
        self, clusters: tuple[int, ...], classes: tuple[str, ...], width: int, reads: int, *, constant: bool = False
    ) -> GroupOutline:
        cost = self.cost
        weights = width * reads * cost.weights
        parameters = weights + width * cost.node_parameters
        return GroupOutline(clusters, width, classes, reads, parameters, weights * cost.positions, constant)

    def trunk(self) -> GroupOutline:
        return self.made((), (), len(self.first), self.first.shape[1])

    def group(self, group: Mapping[str, Any], before: Sequence[GroupOutline], names: Sequence[str]) -> GroupOutline:
        clusters = tuple(group["clusters"])
        constant = bool(group.get("constant"))
        trunk = [source for source in before if not source.clusters and not source.constant]
        read = [*trunk, *(source for source in before if set(source.clusters) & set(clusters))]
        classes = tuple(names[label] for label in group.get("classes", ()))
        width = int(group.get("width", len(classes)))
        reads = sum(source.width for source in read) if before else self.first.shape[1]
        return self.made(clusters, classes, width, 0 if constant else reads, constant=constant)


def _positions(model: ExportedModel) -> dict[str, int]:
    """Return by stage, in their order, the positions at which its weights are used; from the program's shapes."""
    program = load_program(model.content("model.pt2"))
    parameters = program.graph_signature.inputs_to_parameters
    positions: dict[str, int] = {}
    for node in program.graph.nodes:
        names = [parameters[argument.name] for argument in node.all_input_nodes if argument.name in parameters]
        stage = next((name.split(".")[2] for name in names if name.startswith("network.stages.")), None)
        if stage is not None:
            size = [int(length) for length in node.meta["val"].shape[2:]] if "conv" in str(node.target) else [1]
            positions[stage] = max(positions.get(stage, 1), size[0] * size[-1] if len(size) > 1 else 1)
    return positions
