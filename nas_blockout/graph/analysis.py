"""Layers of nodes of any network, and the weights between them, from its graph."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from nas_blockout.graph.label_rules import COMPUTED_WEIGHT, RULES, unknown
from nas_blockout.graph.labels import Labelling, Labels, Use, unrepeated
from nas_blockout.graph.operations import name_of, place_of, shape_of
from nas_blockout.graph.trace import Trace, Untraceable, trace
from nas_blockout.graph.training import Training
from nas_blockout.graph.unmasked import UnmaskedOperation, by_layer, macs_of_nodes, unmasked_operations
from nas_blockout.networks import Connection
from nas_blockout.nodes import NO_NODE, Nodes

CLASSES = "classes"


@dataclass(frozen=True, slots=True)
class NodeLayer:
    """Nodes with the same writers and the same readers, and alike in whether they stay whole.

    A node is one or more channels that stand or fall together: one channel of every layer of a residual stream, an
    attention head, a group of a grouped convolution.

    Args:
        name: Of the layer, different from all others.
        width: Number of nodes, 1 or more.
        rigid: Why all nodes stay, in their order; None where they may be removed and separated. The classes stay too,
            without a reason.
        writers: Weights that make the nodes, in the order of the forward pass.
        readers: Weights that read them.
    """

    name: str
    width: int
    rigid: str | None
    writers: tuple[str, ...]
    readers: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class GraphAnalysis:
    """A network's graph, its layers of nodes and the weights between them; it holds no weights.

    A copy, deep or not, is the analysis itself. It cannot be pickled: analyze the network again.

    Nodes have numbers from 1 on, in the order of the layers; 0 stands for what is no node, such as a channel of the
    image. The layers may form cycles: a residual stream is read by what writes into it.

    Args:
        shape: Of one image.
        classes: Number of classes.
        layers: In the order in which their first nodes are made, the classes last.
        connections: Every weight between nodes, or from the image to nodes, once, in the order of the forward pass. A
            weight that is used several times has the sum of its positions.
        edges: Names of the layers that some weight connects; None for the image and for whatever is no node.
        scales: Names of the weights of batch norms, and the nodes that they scale.
        unmasked: Operations that multiply and accumulate, but are not among the connections.
        other_macs: What these cost by the name of the layer, as of `Branchable.other_macs`.
        graph_hash: 16 hexadecimal digits of the operations, their shapes and the names of the weights.
        trace: The graph.
        values: Of every node of the graph for one image: tensors without values, but for constants and buffers of
            whole numbers.
        labels: The number of the node that each entry of each value belongs to, in the shape of the value. Not to be
            written into: repeated entries share memory.
        is_constant: Whether a value depends on no image, the number of images apart.
        weight_of: The weight of a convolution or linear layer of the graph that is among the connections.
        rigid_nodes: Whether each node stays, entry 0 and the classes included, shape ``(nodes + 1,)``.
    """

    shape: tuple[int, ...]
    classes: int
    layers: tuple[NodeLayer, ...]
    connections: tuple[Connection, ...]
    edges: tuple[tuple[str | None, str], ...]
    scales: Mapping[str, Nodes]
    unmasked: tuple[UnmaskedOperation, ...]
    other_macs: Mapping[str | None, Tensor]
    graph_hash: str
    trace: Trace
    values: Mapping[fx.Node, Any]
    labels: Mapping[fx.Node, Labels]
    is_constant: Mapping[fx.Node, bool]
    weight_of: Mapping[fx.Node, str]
    rigid_nodes: Tensor
    _labelling: Labelling
    _names: Mapping[str, str]
    _whole: Mapping[int, str]
    _roots: Tensor

    @property
    def graph(self) -> fx.Graph:
        """The graph. Its nodes are what `values` and other mappings have as keys: copy them, do not change them."""
        return self.trace.graph

    @property
    def image(self) -> fx.Node:
        """The placeholder of the images."""
        return self.trace.image

    @property
    def output(self) -> fx.Node:
        """The node of the logits."""
        return self.trace.output

    @property
    def parameter_of(self) -> Mapping[fx.Node, str]:
        """Placeholders of parameters and buffers, and their names in the state dict."""
        return self.trace.parameter_of

    @property
    def training(self) -> Mapping[fx.Node, Training]:
        """Nodes of the graph that do something else in training, and what."""
        return self.trace.training

    @property
    def rigid(self) -> Mapping[str, str]:
        """Layers that stay whole, and why; the classes are not among them."""
        return {layer.name: layer.rigid for layer in self.layers if layer.rigid is not None}

    def node_of(self, layer: str, index: int) -> int:
        """Return the number of a node of a layer.

        Raises:
            KeyError: There is no such layer.
            IndexError: The layer is narrower.
        """
        start = 1
        for each in self.layers:
            if each.name == layer:
                if not 0 <= index < each.width:
                    raise IndexError(f"layer {layer!r} has nodes 0..{each.width - 1}, got {index}")
                return start + index
            start += each.width
        raise KeyError(f"there is no layer {layer!r}; there are {', '.join(each.name for each in self.layers)}")

    def memberships(self, of_layers: Mapping[str, Tensor]) -> Tensor:
        """Return the memberships of all nodes by their numbers, shape ``(nodes + 1, k)``; row 0 is zeros.

        Args:
            of_layers: For each layer, shape ``(width, k)``.

        Raises:
            ValueError: A layer is missing, or has another width.
        """
        rows = []
        for layer in self.layers:
            given = of_layers.get(layer.name)
            if given is None or len(given) != layer.width:
                shown = "none" if given is None else f"{len(given)}"
                raise ValueError(f"layer {layer.name!r} needs memberships of {layer.width} nodes, got {shown}")
            rows.append(given)
        return torch.cat([rows[0].new_zeros(1, rows[0].shape[1]), *rows])

    def with_rigid(self, nodes: Mapping[int, str]) -> "GraphAnalysis":
        """Return the analysis in which more nodes stay whole; layers and numbers of nodes may be others in it.

        Args:
            nodes: Numbers of nodes, and why they stay.
        """
        more = {int(self._roots[number]): reason for number, reason in nodes.items() if number}
        return _assembled(self._labelling, self._names, {**more, **self._whole})

    def __copy__(self) -> "GraphAnalysis":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphAnalysis":
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("an analysis cannot be pickled, since its graph cannot: analyze the network again")


def analyze(module: nn.Module, shape: tuple[int, ...], *, names: Mapping[str, str] | None = None) -> GraphAnalysis:
    """Return the layers of nodes of a network, and the weights between them.

    What an operation does to nodes is known for the operations of image networks; whatever else reads nodes keeps them
    whole, with the reason in `NodeLayer.rigid`.

    Args:
        module: Returns logits ``(images, classes)`` for images ``(images, *shape)``. It is unchanged afterward.
        shape: Of one image: channels, height and width.
        names: What layers shall be called, by a weight that writes them. By default a layer has the path of the module
            that first writes it, followed by ``:2`` and so on from its second layer on. The last is always ``classes``.

    Raises:
        Untraceable: The network cannot be exported, does something in training that is neither dropout nor batch norm
            nor stochastic depth, or has no layer for the classes; the message says why, where, and what to do.
    """
    labelling = Labelling(trace(module, shape), shape)
    # Two images tell what mixes images with nodes; one image has the shapes of what is told about the graph.
    labelling.run(2, RULES, unknown)
    labelling.run(1, RULES, unknown)
    return _assembled(labelling, names or {}, labelling.forest.whole_classes())


def _assembled(labelling: Labelling, names: Mapping[str, str], whole: Mapping[int, str]) -> GraphAnalysis:
    grouped = _Grouping(labelling, whole)
    layers, numbers = grouped.layers(names)
    view = _Numbered(labelling, layers, numbers)
    connections = tuple(view.connections())
    widths = {layer.name: layer.width for layer in layers}
    roots = torch.zeros(1 + sum(widths.values()), dtype=torch.long)
    rigid_nodes = torch.ones(len(roots), dtype=torch.bool)
    for root in grouped.members:
        roots[numbers[root]] = root
        rigid_nodes[numbers[root]] = root in whole or root in grouped.class_roots
    return GraphAnalysis(
        shape=labelling.image,
        classes=layers[-1].width,
        layers=layers,
        connections=connections,
        edges=tuple(dict.fromkeys(_edges(connections))),
        scales={name: view.nodes(labels) for name, labels in labelling.scales.items() if bool(labels.any())},
        unmasked=unmasked_operations(labelling),
        other_macs=by_layer(macs_of_nodes(labelling, view.number_of, len(roots) - 1), widths),
        graph_hash=_hash(labelling),
        trace=labelling.trace,
        values=labelling.values,
        labels={node: view.numbered(labels) for node, labels in labelling.labels.items()},
        is_constant=labelling.constant,
        weight_of={node: use.weight for node, use in labelling.uses.items() if bool(use.targets.any())},
        rigid_nodes=rigid_nodes,
        _labelling=labelling,
        _names=names,
        _whole=whole,
        _roots=roots,
    )


class _Grouping:
    """Layers of nodes: classes of labels with the same weights around them.

    Args:
        labelling: Labels of all values.
        whole: Why classes stay whole, by their smallest label.

    Raises:
        Untraceable: The output is no layer of nodes.
    """

    def __init__(self, labelling: Labelling, whole: Mapping[int, str]) -> None:
        self.whole = whole
        self.class_roots = _class_roots(labelling)
        roots = labelling.forest.roots()
        self.members: dict[int, tuple[list[str], list[str], list[str]]] = {}  # written by, read by, filtered by
        for use in labelling.uses.values():
            for root in roots[use.targets].unique().tolist() if not use.passes else []:
                self._note(root, 0, use.weight)
            for root in roots[use.sources].unique().tolist():
                self._note(root, 2 if use.passes else 1, use.weight)
        self.members.pop(0, None)

    def _note(self, root: int, side: int, weight: str) -> None:
        sides = self.members.setdefault(root, ([], [], []))
        if weight not in sides[side]:
            sides[side].append(weight)

    def layers(self, names: Mapping[str, str]) -> tuple[tuple[NodeLayer, ...], Tensor]:
        """Return the layers, and the number of the node of each smallest label of a class."""
        grouped: dict[Any, list[int]] = {}
        for root in sorted(self.members):
            key = (*map(tuple, self.members[root]), root in self.whole)
            grouped.setdefault(CLASSES if root in self.class_roots else key, []).append(root)
        grouped[CLASSES] = grouped.pop(CLASSES)  # the last
        grouped[CLASSES].sort(key=self.class_roots.index)
        numbers = torch.zeros(1 + max(self.members), dtype=torch.long)
        layers: list[NodeLayer] = []
        taken = {CLASSES}
        for key, roots in grouped.items():
            name = CLASSES if key == CLASSES else _free_name(self._name(roots, names), taken)
            taken.add(name)
            start = 1 + sum(layer.width for layer in layers)
            numbers[roots] = torch.arange(start, start + len(roots))
            layers.append(self._layer(name, roots))
        return tuple(layers), numbers

    def _name(self, roots: list[int], names: Mapping[str, str]) -> str:
        writers = self.members[roots[0]][0]
        path, _, own = writers[0].rpartition(".")
        return next((names[weight] for weight in writers if weight in names), path or own)

    def _layer(self, name: str, roots: list[int]) -> NodeLayer:
        writers, readers, _ = ([weight for root in roots for weight in self.members[root][side]] for side in range(3))
        reason = None if name == CLASSES else next((self.whole[root] for root in roots if root in self.whole), None)
        return NodeLayer(name, len(roots), reason, tuple(dict.fromkeys(writers)), tuple(dict.fromkeys(readers)))


def _free_name(name: str, taken: Iterable[str]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}:{number}", number + 1
    return free


def _class_roots(labelling: Labelling) -> list[int]:
    """Return the class of labels of each logit."""
    labels = labelling.labels[labelling.trace.output]
    assert isinstance(labels, Tensor)
    roots: list[int] = labelling.forest.classes(labels)[0].tolist()
    if 0 in roots or len(set(roots)) < len(roots):
        raise Untraceable(_without_class_layer(labelling, len(roots)))
    return roots


def _without_class_layer(labelling: Labelling, outputs: int) -> str:
    """Return which operation makes the outputs instead of a layer for the classes, where, and what to do."""
    rule = "a network must end in a layer for its classes, a linear layer or a convolution with one output for each"
    node = labelling.trace.output
    while node.op == "call_function" and node not in labelling.unmasked and len(_of_images(labelling, node)) == 1:
        node = _of_images(labelling, node)[0]  # what only moves or scales the outputs
    if node.op != "call_function":
        return f"{rule}; this one has none between the images and its {outputs} outputs. Let it end in nn.Linear"
    place, reason = place_of(node), labelling.unmasked.get(node)
    made = f"{name_of(node)}{f' at {place}' if place else ''}"
    if reason == COMPUTED_WEIGHT:
        return (
            f"{rule}, whose weight is a parameter; the weight of the last one of this network, {made}, is computed. "
            "Remove its parametrization, or let the network end in a plain nn.Linear"
        )
    return (
        f"{rule}; the {outputs} outputs of this one are made by {made}, which is no such layer. Let it end in nn.Linear"
    )


def _of_images(labelling: Labelling, node: fx.Node) -> list[fx.Node]:
    return [each for each in node.all_input_nodes if not labelling.constant[each]]


class _Numbered:
    """Values and weights in numbers of nodes.

    Args:
        labelling: Labels of all values.
        layers: The layers.
        numbers: The number of the node of each smallest label of a class.
    """

    def __init__(self, labelling: Labelling, layers: tuple[NodeLayer, ...], numbers: Tensor) -> None:
        self.labelling = labelling
        self.layers = layers
        roots = labelling.forest.roots()
        self.number_of = numbers[roots]
        widths = torch.tensor([layer.width for layer in layers])
        self.starts = 1 + torch.cumsum(widths, 0) - widths

    def numbered(self, labels: Labels) -> Labels:
        """Return numbers of nodes for labels."""
        if isinstance(labels, Tensor):
            return self.number_of[unrepeated(labels)].expand(labels.shape)
        if labels is None:
            return None
        return tuple(each for each in map(self.numbered, labels) if isinstance(each, Tensor))

    def nodes(self, labels: Tensor) -> Nodes:
        """Return the nodes of one side of a weight, of which at least one is some node's."""
        numbers = self.number_of[labels]
        layer_of = torch.searchsorted(self.starts, numbers, right=True) - 1  # -1 where there is no node
        order = list(dict.fromkeys(each for each in layer_of.tolist() if each >= 0))
        shift, start = torch.zeros(len(self.layers) + 1, dtype=torch.long), 0  # the last entry is that of no node
        for each in order:
            shift[each] = start - self.starts[each]
            start += self.layers[each].width
        positions = torch.where(numbers == 0, NO_NODE, numbers + shift[layer_of])
        layers = tuple((self.layers[each].name, self.layers[each].width) for each in order)
        return Nodes(layers, None if torch.equal(positions, torch.arange(start)) else tuple(positions.tolist()))

    def connections(self) -> Iterable[Connection]:
        """Yield the weights between nodes, each once."""
        uses: dict[str, Use] = {}
        positions: dict[str, int] = {}
        for node, use in self.labelling.uses.items():
            if bool(use.targets.any()):
                uses.setdefault(use.weight, use)
                made = self.labelling.values[node].numel() // len(use.targets)
                positions[use.weight] = positions.get(use.weight, 0) + made
        for weight, use in uses.items():
            sources = self.nodes(use.sources) if bool(use.sources.any()) else None
            yield Connection(weight, use.shape, sources, self.nodes(use.targets), use.groups, positions[weight])


def _edges(connections: Iterable[Connection]) -> Iterable[tuple[str | None, str]]:
    for connection in connections:
        if connection.filters_each_node_alone:
            continue
        source = connection.source_nodes
        outside = source is None or not source.are_all
        for target in connection.targets:
            yield from ((None, target),) if outside else ()
            yield from ((each, target) for each in connection.sources)


def _hash(labelling: Labelling) -> str:
    """Return what is equal for equal graphs: no name that the export made up goes into it, and no weight."""
    numbers = {node: f"%{number}" for number, node in enumerate(labelling.trace.graph.nodes)}

    def plain(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return numbers[value]
        return "device" if isinstance(value, torch.device) else value

    lines = []
    for node in labelling.trace.graph.nodes:
        if node.op == "output":
            continue
        what = str(node.target) if node.op == "call_function" else labelling.trace.parameter_of.get(node, "")
        if node in labelling.trace.constants and not labelling.trace.constants[node].is_floating_point():
            what += f" {labelling.trace.constants[node].tolist()}"  # which positions go where
        given = fx.node.map_aggregate((node.args, dict(node.kwargs)) if node.op == "call_function" else (), plain)
        lines.append(f"{what} {given} {shape_of(labelling.values[node])}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
