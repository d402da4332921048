"""The one builder: a network of stages from an architecture; a dense network is the architecture with one cluster.

A stage is one weighted operation and what follows it. Its nodes stand in memory group after group, and groups that
read the same groups of the stage before are one operation (a bundle), so that a dense stage is exactly one convolution
or linear layer.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones.inference import FusedNetwork, FusedStage, fold, image_places
from nas_blockout.backbones.inference_cost import (
    Folded,
    FoldedLayer,
    Operations,
    cut_for_readers,
    fastest_forms,
    fillings,
)
from nas_blockout.networks import Branchable, Connection, Runtime
from nas_blockout.nodes import Nodes
from nas_blockout.randomness.draws import Randomness

Placement = Literal["hidden", "classifier", "all"]
Regularizer = Callable[[], nn.Module]
Wrapper = Callable[[nn.Linear], nn.Module]


@dataclass(frozen=True, slots=True)
class Stage:
    """One weighted operation of a network, without groups, and the layer of nodes that it ends in.

    Args:
        name: Name of the layer of nodes.
        kind: What the weight is used for.
        width: Nodes (channels) of the dense stage.
        kernel: Side of the convolution's window, odd; 1 for linear.
        pool: Side of the max pooling that follows; 1 for none, 0 for the mean over all positions.
        positions: Spatial positions at which each weight is used for one image.
        activation: Whether batch normalization and ReLU follow.
    """

    name: str
    kind: Literal["convolution", "linear"]
    width: int
    kernel: int = 1
    pool: int = 1
    positions: int = 1
    activation: bool = True


@dataclass(frozen=True, slots=True)
class Sites:
    """Where a method enters a network: factories of layers, each called once for every place.

    In eval mode each layer is the identity, and each wrapped linear layer the plain one.

    Args:
        maps: Layer put after the convolution stages that `last_maps` selects.
        nodes: Layer put before the linear layers that `placement` selects.
        weights: Wraps the linear layers that `placement` selects.
        placement: ``hidden`` selects for `nodes` what follows a hidden layer, and for `weights` what ends in one;
            ``classifier`` is the last linear layer, whatever it reads; ``all`` is every linear layer.
        last_maps: How many of the last convolution stages `maps` follows, at most; None for all.
    """

    maps: Regularizer | None = None
    nodes: Regularizer | None = None
    weights: Wrapper | None = None
    placement: Placement = "all"
    last_maps: int | None = None

    def at_maps(self, position: int, count: int) -> "Sites":
        """Return what enters at one convolution stage, counted from 0, of several."""
        followed = self.last_maps is None or position >= count - self.last_maps
        return self if followed else replace(self, maps=None)

    def at_linear(self, position: int, count: int) -> "Sites":
        """Return what enters at one linear layer of a head.

        Args:
            position: Of the layer, counted from 0; the first one reads the pooled features.
            count: Linear layers of the head; the last one ends in the classes.
        """
        last = position == count - 1
        reads_hidden, ends_in_hidden = {
            "hidden": (position > 0, not last),
            "classifier": (last, last),
            "all": (True, True),
        }[self.placement]
        return replace(
            self, nodes=self.nodes if reads_hidden else None, weights=self.weights if ends_in_hidden else None
        )


@dataclass(frozen=True, slots=True)
class Bundle:
    """Groups of one layer that read the same nodes, as one operation.

    Args:
        groups: Positions of the groups in the layer of the architecture, in the order in which their nodes stand in
            memory.
        ranges: Half-open ranges of nodes that are read, in the memory order of the layer before; none for constants.
        width: Nodes that it ends in.
    """

    groups: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]
    width: int

    @property
    def inputs(self) -> int:
        """Nodes that are read."""
        return sum(stop - start for start, stop in self.ranges)


def bundles_of(architecture: Architecture, inputs: int) -> tuple[tuple[Bundle, ...], ...]:
    """Return the operations of every layer: groups that read the same nodes are put together.

    Args:
        architecture: What to build.
        inputs: Nodes of the layer before the first, which every group of the first layer reads that is not constant.
    """
    layers: list[tuple[Bundle, ...]] = []
    for index, layer in enumerate(architecture.layers):
        if index:
            before = _offsets(architecture.layers[index - 1], layers[-1])
            ranges_read = [_joined(before[source] for source in reads) for reads in architecture.reads(index)]
        else:
            ranges_read = [() if group.constant else ((0, inputs),) for group in layer.groups]
        by_reads: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for position, ranges in enumerate(ranges_read):
            by_reads.setdefault(ranges, []).append(position)
        bundles = [
            Bundle(tuple(positions), ranges, sum(layer.groups[position].width for position in positions))
            for ranges, positions in sorted(by_reads.items(), key=lambda item: (not item[0], item[0]))
        ]
        layers.append(tuple(bundles))  # the constants last
    return tuple(layers)


def node_order(architecture: Architecture, inputs: int) -> tuple[tuple[int, ...], ...]:
    """Return for every layer the positions of its groups in the order in which their nodes stand in memory."""
    return tuple(
        tuple(position for bundle in bundles for position in bundle.groups)
        for bundles in bundles_of(architecture, inputs)
    )


class ConstantNodes(nn.Module):
    """Nodes that read nothing: the same for every image, and learned like the bias of any other node.

    It is a weight without columns and its bias, as of the plain operation in whose place it stands. Batch normalization
    follows it as it follows any other, and its maps have positions, because the convolution that reads them pads with
    zeros: at the border it reads less of a constant than inside, which no bias can say.

    Args:
        stage: What the operation would be.
        width: Nodes.
    """

    def __init__(self, stage: Stage, width: int) -> None:
        super().__init__()
        window = (stage.kernel, stage.kernel) if stage.kind == "convolution" else ()
        self.weight = nn.Parameter(torch.empty(width, 0, *window))
        self.bias = None if stage.activation else nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the nodes, before normalization, for as many images and positions as `x` has."""
        nodes = x.new_zeros(x.shape[0], len(self.weight), *x.shape[2:])
        return nodes if self.bias is None else nodes + self.bias.view(-1, *(1,) * (x.dim() - 2))


class BranchedStage(nn.Module):
    """One layer of a branched network: an operation a bundle, then normalization, ReLU and pooling over all of them.

    Args:
        stage: Kind, kernel and what follows.
        bundles: The operations; together they make the layer's nodes, in this order.
        sites: Where a method enters.
    """

    def __init__(self, stage: Stage, bundles: Sequence[Bundle], sites: Sites) -> None:
        super().__init__()
        self.stage = stage
        self.ranges = tuple(bundle.ranges for bundle in bundles)
        width = sum(bundle.width for bundle in bundles)
        self.operations = nn.ModuleList(_operation(stage, bundle, sites) for bundle in bundles)
        linear = stage.kind == "linear"
        self.before = sites.nodes() if linear and sites.nodes else None
        self.after = sites.maps() if not linear and sites.maps else None
        norm = nn.BatchNorm1d if linear else nn.BatchNorm2d
        self.normalize = norm(width) if stage.activation else None

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return the layer's nodes: ``(batch, width)``, or ``(batch, width, height, width)`` between convolutions."""
        if self.before is not None:
            x = self.before(x, generator)
        outputs = [self._operate(index, x, generator) for index in range(len(self.operations))]
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
        if self.normalize is not None:
            x = F.relu(self.normalize(x), inplace=True)
        if self.after is not None:
            x = self.after(x, generator)
        if self.stage.pool == 0:
            return x.mean((2, 3))
        return F.max_pool2d(x, self.stage.pool) if self.stage.pool > 1 else x

    def folded(self) -> FoldedLayer:
        """Return the operations of the layer as they are run in eval mode, normalization folded into their weights.

        The layers of a method are left out: in eval mode they do nothing.
        """
        operations, start = list[Folded](), 0
        for index, ranges in enumerate(self.ranges):
            weight: Tensor = self.get_parameter(f"operations.{index}.weight")
            bias = None if self.normalize else self.get_parameter(f"operations.{index}.bias")
            rows = slice(start, start + len(weight))
            # Constants run as rows of zeros of the operation before them, which takes less time than one of their own.
            read = ranges or (operations[-1].ranges if operations else ((0, 1),))
            if not ranges:
                inputs = sum(last - first for first, last in read)
                weight = weight.new_zeros(len(weight), inputs, *weight.shape[2:])
            operations.append(Folded(*fold(weight, bias, self.normalize, rows), read))
            start = rows.stop
        return FoldedLayer(tuple(operations), self.stage.positions, self.stage.pool)

    def _operate(self, index: int, x: Tensor, generator: Randomness | None) -> Tensor:
        operation = self.operations[index]
        if isinstance(operation, ConstantNodes):
            return operation(x)  # type: ignore[no-any-return]  # of any module
        read = x
        if (ranges := self.ranges[index]) != ((0, x.shape[1]),):  # a slice of all is copied once more by its gradient
            parts = [x.narrow(1, start, stop - start) for start, stop in ranges]
            read = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        result: Tensor = operation(read) if isinstance(operation, nn.Linear | nn.Conv2d) else operation(read, generator)
        return result


class BranchedNetwork(Branchable):
    """A network built from stages and an architecture over the last of them.

    Args:
        stages: All stages, the classes last.
        architecture: Groups of the last ``len(architecture.layers)`` stages; the stages before are dense.
        channels: Channels of the image.
        sites: Where a method enters; nowhere by default.
        normalize_logits: Whether batch normalization without affine parameters follows the classes.

    Raises:
        ValueError: The layers of the architecture are not the last stages, by name and number of classes.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        architecture: Architecture,
        *,
        channels: int,
        sites: Sites | None = None,
        normalize_logits: bool = False,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.full = full = complete(architecture, stages)
        self.plan, self.channels = tuple(stages), channels
        layers = bundles_of(full, channels)
        order = node_order(full, channels)[-1]
        self.stages = nn.ModuleDict(
            {
                stage.name: BranchedStage(stage, bundles, entering)
                for stage, bundles, entering in zip(stages, layers, _sites_of(stages, sites or Sites()), strict=True)
            }
        )
        # Nodes stand in memory bundle by bundle, so the classes may stand in another order than that of the labels.
        classes = [label for position in order for label in full.layers[-1].groups[position].classes or ()]
        self.class_order: Tensor | None
        in_order = classes == sorted(classes)
        index = None if in_order else torch.tensor(sorted(range(len(classes)), key=classes.__getitem__))
        self.register_buffer("class_order", index, persistent=False)
        self.normalize_logits = nn.BatchNorm1d(len(classes), affine=False) if normalize_logits else None

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The weights between layers of nodes; only for a dense network, which is what a method may mask."""
        names = [None, *(stage.name for stage in self.plan)]
        if not self.full.is_dense:
            raise ValueError("only a dense network has one weight between two layers; this one has branches")
        return tuple(
            Connection.of(
                self, f"stages.{stage.name}.operations.0.weight", source, stage.name, positions=stage.positions
            )
            for source, stage in zip(names, self.plan, strict=False)
        )

    @property
    def scales(self) -> Mapping[str, Nodes]:
        """The factors of batch normalization by name; only for a dense network."""
        return {
            f"stages.{stage.name}.normalize.weight": Nodes.whole(stage.name, stage.width)
            for stage in self.plan
            if stage.activation
        }

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return logits in the order of the classes, shape ``(batch, classes)``."""
        for stage in self.stages.values():
            x = stage(x, generator)
        if self.class_order is not None:
            x = x.index_select(1, self.class_order)
        return x if self.normalize_logits is None else self.normalize_logits(x)

    def for_inference(
        self, *, operations: Operations = "fastest", runtime: Runtime = "torch", batch: int | None = None
    ) -> FusedNetwork:
        """Return a copy to be run, not trained: normalization folded in, equal parallel operations as one.

        It computes what this network computes in eval mode, to rounding.

        Args:
            operations: How layers are divided into operations: ``split`` for as few as need no zeros, ``whole`` for one
                that has them between its branches, ``summed`` for one block of what every branch reads and one of what
                only some do, or ``fastest`` for what is expected to take least time.
            runtime: What is expected to run it: PyTorch, or ``onnxruntime`` once it is exported, where calls and sums
                cost less and copies more. Either runs all.
            batch: Images that are expected at a time, 1 or more, for which alone ``fastest`` then divides; None for
                one as well as many. Any number can be run.

        Raises:
            ValueError: There are no such operations or no such runtime, or `batch` is below 1.
        """
        for name, value, known in (("operations", operations, Operations), ("runtime", runtime, Runtime)):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
        if batch is not None and batch < 1:
            raise ValueError(f"batch must be at least 1, or None for one image as well as many, got {batch}")
        stages = [stage for stage in self.stages.values() if isinstance(stage, BranchedStage)]
        layers = cut_for_readers([stage.folded() for stage in stages])
        places, fused = image_places(self.channels), {}
        forms = (
            fastest_forms(layers, places, runtime, parent=self._parent(), batch=batch)
            if operations == "fastest"
            else (operations,) * len(layers)
        )
        for stage, layer, form, filled in zip(stages, layers, forms, fillings(layers, forms), strict=True):
            plan, activation = stage.stage, stage.normalize is not None
            fused[plan.name] = FusedStage(
                layer, places, form=form, filled=filled, pool=plan.pool, activation=activation
            )
            places = fused[plan.name].places
        return FusedNetwork(fused, class_order=self.class_order, normalize_logits=copy.deepcopy(self.normalize_logits))

    def _parent(self) -> list[FoldedLayer]:
        """Return the layers of the dense network of the same stages, without values."""
        layers, inputs = [], self.channels
        for stage in self.plan:
            window = (stage.kernel, stage.kernel) if stage.kind == "convolution" else ()
            weight, bias = (
                torch.empty(stage.width, inputs, *window, device="meta"),
                torch.empty(stage.width, device="meta"),
            )
            layers.append(FoldedLayer((Folded(weight, bias, ((0, inputs),)),), stage.positions, stage.pool))
            inputs = stage.width
        return layers


def complete(architecture: Architecture, stages: Sequence[Stage]) -> Architecture:
    """Return the architecture over all stages: those before its first layer become dense, read by every group.

    Raises:
        ValueError: The layers of the architecture are not the last stages by name.
    """
    names = [stage.name for stage in stages]
    branching = [layer.name for layer in architecture.layers]
    if names[-len(branching) :] != branching:
        raise ValueError(f"layers of an architecture must be the last stages of the backbone, {names}; got {branching}")
    if architecture.classes != stages[-1].width:
        raise ValueError(f"the architecture holds {architecture.classes} classes, the data {stages[-1].width}")
    if len(branching) == len(names):
        return architecture
    everywhere = tuple(range(architecture.clusters))
    trunk = [Layer(stage.name, (Group(everywhere, stage.width),)) for stage in stages[: -len(branching)]]
    return Architecture(architecture.clusters, (*trunk, *architecture.layers))


def macs_of(architecture: Architecture, stages: Sequence[Stage], channels: int) -> int:
    """Return the multiply-accumulates an image of the weighted operations, without building the network."""
    counts = complete(architecture, stages).weights(channels)
    return sum(count * stage.kernel**2 * stage.positions for count, stage in zip(counts, stages, strict=True))


def _sites_of(stages: Sequence[Stage], sites: Sites) -> list[Sites]:
    """Return what enters at each stage."""
    linear = sum(stage.kind == "linear" for stage in stages)
    convolutions = len(stages) - linear  # which come before the linear ones
    return [
        sites.at_maps(n, convolutions) if n < convolutions else sites.at_linear(n - convolutions, linear)
        for n in range(len(stages))
    ]


def _operation(stage: Stage, bundle: Bundle, sites: Sites) -> nn.Module:
    if not bundle.ranges:
        return ConstantNodes(stage, bundle.width)
    bias = not stage.activation  # batch normalization has its own
    if stage.kind == "convolution":
        return nn.Conv2d(bundle.inputs, bundle.width, stage.kernel, padding=stage.kernel // 2, bias=bias)
    linear = nn.Linear(bundle.inputs, bundle.width, bias=bias)
    return sites.weights(linear) if sites.weights else linear


def _offsets(layer: Layer, bundles: Sequence[Bundle]) -> dict[int, tuple[int, int]]:
    offsets, start = {}, 0
    for position in (position for bundle in bundles for position in bundle.groups):
        offsets[position] = (start, start + layer.groups[position].width)
        start += layer.groups[position].width
    return offsets


def _joined(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)
