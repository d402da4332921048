"""The graph run on labels: which node of which layer every entry of every value belongs to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from nas_blockout.graph.macs import counting
from nas_blockout.graph.operations import SHAPED_LIKE, bound, name_of, written
from nas_blockout.graph.trace import Trace

Labels: TypeAlias = Tensor | tuple[Tensor, ...] | None
Rule: TypeAlias = "Callable[[Call], Labels]"


class Forest:
    """Classes of labels, as a union-find. Label 0 belongs to no node and never unites."""

    def __init__(self) -> None:
        self._parents = [0]
        self._roots = torch.zeros(1, dtype=torch.long)
        self._dirty = False
        self.reasons: dict[int, str] = {}

    def fresh(self, number: int) -> Tensor:
        """Return new labels, each a class of its own, shape ``(number,)``."""
        start = len(self._parents)
        self._parents += range(start, start + number)
        self._dirty = True
        return torch.arange(start, start + number)

    def roots(self) -> Tensor:
        """Return the smallest label of the class of every label; entry 0 is 0."""
        if self._dirty:
            roots = torch.tensor(self._parents)
            while not torch.equal(above := roots[roots], roots):
                roots = above
            self._roots, self._dirty = roots, False
        return self._roots

    def classes(self, labels: Tensor) -> Tensor:
        """Return the smallest label of the class of each label, in the same shape; repeated dims stay repeated."""
        small = unrepeated(labels)
        return self.roots()[small].expand(labels.shape)

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Make one class of the labels of two tensors wherever both have one; shapes are broadcast."""
        first, second = torch.broadcast_tensors(first, second)
        first, second = _together(first, second)
        roots = self.roots()
        pairs = torch.stack((roots[first], roots[second]), -1).reshape(-1, 2)
        pairs = pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs != 0).all(1)]
        if len(pairs) == 0:
            return
        for one, other in pairs.unique(dim=0).tolist():
            low, high = sorted((self._find(one), self._find(other)))
            self._parents[high] = low
        self._dirty = True

    def keep_whole(self, labels: Tensor, reason: str) -> None:
        """Keep the nodes of some labels whole and in order; the first reason of a label stays."""
        for label in unrepeated(labels).unique().tolist():
            if label:
                self.reasons.setdefault(label, reason)

    def whole_classes(self) -> dict[int, str]:
        """Return why classes stay whole, by their smallest label."""
        roots = self.roots()
        reasons: dict[int, str] = {}
        for label in sorted(self.reasons):
            reasons.setdefault(int(roots[label]), self.reasons[label])
        return reasons

    def _find(self, label: int) -> int:
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """A weighted operation, with the labels of what it reads and makes.

    Args:
        weight: Name of the parameter.
        shape: Of the parameter.
        sources: Labels of what the operation reads, one for each channel or feature; 0 where it is no node.
        targets: Labels of what it makes.
        groups: Groups of a convolution.
        bias: Name of the parameter that is added, or None.
    """

    weight: str
    shape: tuple[int, ...]
    sources: Tensor
    targets: Tensor
    groups: int
    bias: str | None = None

    @property
    def passes(self) -> bool:
        """Whether each node is computed from itself alone: a depthwise convolution."""
        return self.groups > 1 and self.groups == len(self.targets) == len(self.sources)


@dataclass(eq=False)
class Labelling:
    """Labels of all values for some number of images.

    The labels of weights are made in the first run and found again in the next.

    Args:
        trace: The graph.
        image: Shape of one image.
        unmasked: Why operations are no weights between nodes.
        macs: Multiply-accumulates of each operation, for as many images as there were in the last run.
    """

    trace: Trace
    image: tuple[int, ...]
    forest: Forest = field(default_factory=Forest)
    uses: dict[fx.Node, Use] = field(default_factory=dict)
    unmasked: dict[fx.Node, str] = field(default_factory=dict)
    scales: dict[str, Tensor] = field(default_factory=dict)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    labels: dict[fx.Node, Labels] = field(default_factory=dict)
    constant: dict[fx.Node, bool] = field(default_factory=dict)
    macs: dict[fx.Node, int] = field(default_factory=dict)

    def run(self, images: int, rules: Mapping[str, Rule], unknown: Rule) -> None:
        """Compute shapes and labels of all values.

        Args:
            images: How many images there are. Two tell whether an operation mixes images with nodes.
            rules: One for each kind of operation, by its name.
            unknown: For all others.
        """
        self.values, self.labels, self.constant, self.macs = {}, {}, {}, {}
        with counting() as counter:
            counted = 0
            for node in self.trace.graph.nodes:
                if node.op == "placeholder":
                    self._placeholder(node, images)
                elif node.op == "call_function":
                    value = self.values[node] = self._value(node)
                    before, counted = counted, int(counter.get_total_flops())
                    self.macs[node] = (counted - before) // 2
                    self._label(node, value, rules, unknown)
                    counted = int(counter.get_total_flops())  # a rule may run the call on labels

    def _placeholder(self, node: fx.Node, images: int) -> None:
        known = node.meta["val"]
        if node is self.trace.image:
            value = torch.empty(images, *self.image, dtype=known.dtype, device="meta")
        elif node in self.trace.constants:
            value = self.trace.constants[node]
        else:
            value = torch.empty(known.shape, dtype=known.dtype, device="meta")
        self.values[node] = value
        self.labels[node] = _nothing(value)
        self.constant[node] = node is not self.trace.image

    def _label(self, node: fx.Node, value: Any, rules: Mapping[str, Rule], unknown: Rule) -> None:
        tensors = [each for each in node.all_input_nodes if self.labels[each] is not None]
        if name_of(node) in SHAPED_LIKE:
            tensors = tensors[1:]
        self.constant[node] = all(self.constant[each] for each in tensors)
        if self.constant[node] or not isinstance(value, Tensor | tuple | list):
            self.labels[node] = _nothing(value)
            return
        labels = rules.get(name_of(node), unknown)(Call(self, node, bound(node), value))
        if isinstance(labels, Tensor):
            self.labels[node] = repeated(labels)
        else:
            self.labels[node] = None if labels is None else tuple(map(repeated, labels))

    def _value(self, node: fx.Node) -> Any:
        assert written(node) is None, "the graph is functional"
        assert callable(node.target)
        operands = [self.values[each] for each in node.all_input_nodes if isinstance(self.values[each], Tensor)]
        mixed = any(each.is_meta for each in operands)

        def value(each: fx.Node) -> Any:
            known = self.values[each]
            return known.to("meta") if mixed and isinstance(known, Tensor) else known

        with torch.no_grad():
            return node.target(*fx.node.map_arg(node.args, value), **fx.node.map_arg(node.kwargs, value))


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call of which some input depends on the image, as a rule sees it.

    Args:
        run: The labels of what has been computed before.
        node: Of the graph.
        given: Arguments by name; tensors are nodes.
        value: What the call returns, without its values.
    """

    run: Labelling
    node: fx.Node
    given: Mapping[str, Any]
    value: Any

    @property
    def forest(self) -> Forest:
        """The classes of labels."""
        return self.run.forest

    @property
    def operands(self) -> list[fx.Node]:
        """The tensors that the call reads."""
        return [each for each in self.node.all_input_nodes if isinstance(self.run.labels[each], Tensor)]

    @property
    def active(self) -> list[fx.Node]:
        """The tensors that depend on the image."""
        return [each for each in self.operands if not self.run.constant[each]]

    def labels(self, argument: str | fx.Node) -> Tensor:
        """Return the classes of the labels of a tensor: an argument, or a node."""
        node = self.given[argument] if isinstance(argument, str) else argument
        labels = self.run.labels[node]
        assert isinstance(labels, Tensor)
        return self.forest.classes(labels)

    def nothing(self) -> Labels:
        """Return labels without nodes for what the call returns."""
        return _nothing(self.value)

    def whole(self, reason: str) -> Labels:
        """Keep all nodes that the call reads whole; what it makes is no node's."""
        self.run.unmasked.setdefault(self.node, reason)
        for each in self.operands:
            self.forest.keep_whole(self.labels(each), reason)
        return self.nothing()


def _nothing(value: Any) -> Labels:
    if isinstance(value, Tensor):
        return torch.zeros((1,) * value.dim(), dtype=torch.long).expand(value.shape)
    if isinstance(value, tuple | list):
        return tuple(each for each in map(_nothing, value) if isinstance(each, Tensor))
    return None


def unrepeated(labels: Tensor) -> Tensor:
    """Return labels with one entry along every dim along which they are repeated in memory."""
    for dim, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if size > 1 and stride == 0:
            labels = labels.narrow(dim, 0, 1)
    return labels


def repeated(labels: Tensor) -> Tensor:
    """Return equal labels that are repeated in memory along every dim along which they are the same."""
    small = unrepeated(labels)
    for dim, size in enumerate(small.shape):
        if size > 1 and torch.equal(small.narrow(dim, 1, size - 1), first_along(small, [dim]).narrow(dim, 1, size - 1)):
            small = small.narrow(dim, 0, 1)
    if small.numel() < labels.numel():
        small = small.clone()  # the memory of the large one goes
    return small.expand(labels.shape)


def first_along(labels: Tensor, dims: Sequence[int]) -> Tensor:
    """Return labels in which the first entry along some dims stands for all."""
    first = labels
    for dim in dims:
        first = first.narrow(dim, 0, min(1, first.shape[dim]))
    return first.expand(labels.shape)


def same_along(labels: Tensor, dims: Sequence[int]) -> bool:
    """Whether labels are the same along some dims."""
    small = unrepeated(labels)
    return torch.equal(small, first_along(small, dims))


def _together(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return two tensors of one shape with one entry along every dim along which both are repeated."""
    for dim, size in enumerate(first.shape):
        if size > 1 and first.stride(dim) == 0 and second.stride(dim) == 0:
            first, second = first.narrow(dim, 0, 1), second.narrow(dim, 0, 1)
    return first, second
