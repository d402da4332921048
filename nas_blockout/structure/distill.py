"""Distillation: learned cluster probabilities become an explicit branched architecture, with the weights carried over.

Memberships stand in dictionaries from the first masked layer to the classes; every tensor has the shape ``(nodes,
clusters)``. Which layer reads which, a `Wiring` says; without one the layers form a chain.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.func import functional_call

from nas_blockout.architecture import Architecture, Group, Layer
from nas_blockout.backbones.branched import BranchedNetwork, BranchedStage, node_order
from nas_blockout.methods.blockout import Blockout
from nas_blockout.methods.masking import common_clusters
from nas_blockout.methods.supernet.darts import Darts
from nas_blockout.networks import Branchable, Network
from nas_blockout.settings_fields import Conflict, Range, refuse
from nas_blockout.structure.clean_up import cleaned, effective, merged
from nas_blockout.structure.two_stages import TwoStageSettings
from nas_blockout.structure.wiring import Wiring, completed

Weights = Literal["inherited", "scratch"]
Placebo = Literal["none", "nodes", "classes", "random", "unbranched"]
TrimBy = Literal["probability", "magnitude"]
Learned = Blockout | Darts | Branchable  # only of Blockout are weights scaled; else they are kept or not

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
_BISECTIONS = 30


@dataclass(frozen=True, slots=True)
class DistillationSettings(TwoStageSettings):
    """Settings of distillation: how a learned structure becomes a branched network.

    Args:
        threshold: A node belongs to a cluster if its probability is at least this.
        thresholds: Candidates that are tried instead of `threshold`; the one whose hard network is the most accurate on
            the validation images is used, of equal ones the highest. These forward passes are not counted as sample
            passes, but in the measured seconds.
        target_macs: Largest share of the dense MACs; if `threshold` leaves more, memberships or nodes are trimmed.
        target_parameters: Largest share of the dense weights between nodes, without biases and normalization.
        trim_by: What is trimmed first if `threshold` leaves more than the targets: the memberships of lowest
            ``probability``, or the nodes of smallest ``magnitude``, as in pruning.
        fill_target: Whether the threshold may also be lowered as far as the target allows, so that the cost is met from
            both sides; for arms whose cost must match another's. Excludes `thresholds`.
        min_group_size: Smaller groups are merged into the most similar group of their layer that has as many nodes; 1
            for none. Classes stay where they are.
        clean_up: Whether nodes that read nothing are removed, and a class or a layer that would read nothing gets its
            most probable membership back: no node is without a purpose, but the network computes something else.
            Without it such nodes become constants, at no MACs, and the branched network computes exactly what the
            masked one does.
        weights: ``inherited`` keeps the learned weights, ``scratch`` initializes new ones (an ablation).
        placebo: ``nodes`` shuffles the memberships of the nodes within every layer, ``classes`` those of the classes
            only, ``random`` draws all of them anew for the same MACs and number of clusters and needs ``scratch``.
            ``unbranched`` only removes the branches: all remaining nodes are connected, with their weights under P, and
            some more nodes are trimmed if that exceeds the target.
        draws: Samples of C for the mean accuracy of the discretization gap. Each takes a pass over the validation
            images and one for the statistics of normalization, which for a deep network may cost more than an epoch.
    """

    threshold: Annotated[float, Range(gt=0, lt=1)] = 0.5
    thresholds: tuple[Annotated[float, Range(gt=0, lt=1)], ...] = ()
    target_macs: Annotated[float, Range(gt=0, le=1)] | None = None
    target_parameters: Annotated[float, Range(gt=0, le=1)] | None = None
    trim_by: TrimBy = "magnitude"
    fill_target: bool = False
    min_group_size: Annotated[int, Range(ge=1)] = 1
    clean_up: bool = True
    weights: Weights = "inherited"
    placebo: Placebo = "none"
    draws: Annotated[int, Range(ge=1)] = 8

    def __post_init__(self) -> None:
        TwoStageSettings.__post_init__(self)
        refuse(self._conflicts())

    def _conflicts(self) -> Iterator[Conflict]:
        if self.fill_target and self.thresholds:
            message = "fill_target leaves no threshold to choose: give thresholds without it, or it without thresholds"
            yield Conflict(message, "fill_target", "thresholds")
        if self.trim_by == "magnitude" and self.thresholds:
            message = "thresholds are compared with probabilities: give them with trim_by='probability'"
            yield Conflict(message, "thresholds", "trim_by")
        if self.placebo == "random" and self.weights != "scratch":
            message = f"placebo='random' has no weights to inherit: it needs weights='scratch', got {self.weights!r}"
            yield Conflict(message, "placebo", "weights")


@dataclass(frozen=True, slots=True)
class Distilled:
    """An architecture and where its nodes come from.

    Args:
        architecture: The branched network.
        nodes: For every layer the nodes of the masked network that make up each group, in the order of its groups.
        memberships: The hard memberships that it computes, as zeros and ones, of the layers that have any; of the
            control ``unbranched`` the P of the nodes that are kept.
        complete: The memberships that the architecture describes, as booleans: of all layers of the wiring, and in the
            extra clusters that stand for what is not masked (see `extra_clusters`).
    """

    architecture: Architecture
    nodes: Mapping[str, tuple[Tensor, ...]]
    memberships: Mapping[str, Tensor]
    complete: Mapping[str, Tensor]


def harden(probabilities: Mapping[str, Tensor], threshold: float) -> dict[str, Tensor]:
    """Return hard memberships: P at or above the threshold; every class keeps at least its most probable cluster."""
    hard = {name: (p.detach() >= threshold) for name, p in probabilities.items()}
    last = list(hard)[-1]
    best = probabilities[last].detach().argmax(1, keepdim=True)
    hard[last] = hard[last].scatter(1, best, hard[last].gather(1, best) | ~hard[last].any(1, keepdim=True))
    return hard


def distill(
    probabilities: Mapping[str, Tensor],
    hard: Mapping[str, Tensor],
    *,
    wiring: Wiring | None = None,
    min_group_size: int = 1,
    clean_up: bool = True,
) -> Distilled:
    """Return the branched architecture of hard memberships; nodes with equal memberships form a group.

    Nodes that no class can reach are removed, and so are memberships that no neighbor shares: neither changes what is
    computed. Without more the branched network is the masked network under the given memberships, whatever they are:
    nodes that read nothing form constant groups, and a layer of which nothing is left keeps its most probable node as
    one. With the clean-up there are no constants (see `clean_up`), which changes what is computed where there were any.
    A rigid layer keeps all of its nodes, those without clusters as a constant group, and what they read.

    Args:
        probabilities: P of every layer that has memberships, from the first to the classes.
        hard: Memberships as booleans, shaped as the probabilities.
        wiring: All layers of the network; None for a chain of the layers that have memberships.
        min_group_size: Nodes of smaller groups get the memberships of the most similar group of their layer that is not
            smaller (most shared, then fewest other clusters, then widest); where a layer has none, of its widest. Then
            all is cleaned up again. Classes are not touched.
        clean_up: Whether to clean up; without, and without merging, nothing changes that is computed.
    """
    numbered = wiring is not None  # the nodes of stages may stand in any order, those of a graph may not
    wiring = wiring or Wiring.chain({name: len(p) for name, p in probabilities.items()})
    whole_p, whole_hard = completed(probabilities, wiring), completed(hard, wiring)

    def left(memberships: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return cleaned(whole_p, memberships, wiring) if clean_up else effective(memberships, wiring)

    kept, last = left(whole_hard), wiring.names[-1]
    if min_group_size > 1:
        hidden = {name: merged(value, min_group_size) for name, value in kept.items() if name != last}
        kept = left({**hidden, last: kept[last]})
    sources = wiring.sources()
    grouped = {
        name: _grouped(name, kept, wiring, sources[name], probabilities.get(name, whole_p[name]))
        for name in wiring.names
    }
    layers = tuple(_numbered(layer, nodes) if numbered else layer for layer, nodes in grouped.values())
    edges = () if wiring.is_chain else wiring.edges
    memberships = {name: kept[name][:, : p.shape[1]].to(p.dtype) for name, p in probabilities.items()}
    return Distilled(
        Architecture(kept[last].shape[1], layers, edges),
        {name: nodes for name, (_, nodes) in grouped.items()},
        memberships,
        kept,
    )


def shuffled(
    hard: Mapping[str, Tensor], generator: torch.Generator, *, placebo: Placebo = "nodes"
) -> dict[str, Tensor]:
    """Return the placebo's memberships: the same rows, given to other nodes of the same layer.

    Args:
        hard: Memberships, shape ``(nodes, clusters)`` each.
        generator: Source of the permutations, on the CPU.
        placebo: ``nodes`` permutes every layer, ``classes`` the last one only, the others nothing.
    """
    chosen = {"nodes": set(hard), "classes": {list(hard)[-1]}}.get(placebo, set())
    return {
        name: value[torch.randperm(len(value), generator=generator).to(value.device)] if name in chosen else value
        for name, value in hard.items()
    }


def unbranched(probabilities: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return P of the same nodes in one cluster, of which each is as probably as of the most probable of its own."""
    return {name: p.amax(1, keepdim=True) for name, p in probabilities.items()}


def threshold_for(
    probabilities: Mapping[str, Tensor],
    target: float,
    share_of: Callable[[Distilled], float],
    *,
    wiring: Wiring | None = None,
    least: float = 0.0,
    min_group_size: int = 1,
    clean_up: bool = True,
) -> float:
    """Return the lowest threshold, to one part in a thousand million, whose architecture costs at most a target.

    Args:
        probabilities: P of every masked layer.
        target: Largest share of the dense cost, in [0, 1].
        share_of: Cost of what is distilled as a share of the dense network's.
        wiring: As of `distill`.
        least: Lowest threshold to return, in [0, 1]. Below it are memberships that training has unlearned; where the
            target leaves room for them, 0 takes them in all the same.
        min_group_size: As of `distill`.
        clean_up: Likewise.

    Raises:
        ValueError: Even the highest threshold costs more than the target.
    """

    def meets(threshold: float) -> bool:
        return cost(threshold) <= target

    def cost(threshold: float) -> float:
        hard = harden(probabilities, threshold)
        return share_of(distill(probabilities, hard, wiring=wiring, min_group_size=min_group_size, clean_up=clean_up))

    if meets(least):
        return least
    low, high = least, 1.0 - 1e-9
    if not meets(high):
        smallest = cost(high)
        raise ValueError(
            f"no threshold reaches {target:.1%} of the dense cost; the smallest network costs {smallest:.1%}"
        )
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def random_like(
    probabilities: Mapping[str, Tensor],
    share: float,
    share_of: Callable[[Distilled], float],
    *,
    seed: int,
    wiring: Wiring | None = None,
    clean_up: bool = True,
) -> dict[str, Tensor]:
    """Return random memberships of as many clusters, whose architecture has nearly the cost of a learned one.

    Args:
        probabilities: P of every masked layer; only their shapes are used.
        share: Cost to meet from below, as a share of the dense network's.
        share_of: Cost of what is distilled as a share of the dense network's.
        seed: Of the memberships.
        wiring: As of `distill`.
        clean_up: As of `distill`.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.rand(p.shape, generator=generator, dtype=p.dtype) for name, p in probabilities.items()}
    return harden(drawn, threshold_for(drawn, share, share_of, wiring=wiring, clean_up=clean_up))


def weights_under(learned: Learned, memberships: Mapping[str, Tensor]) -> dict[str, Tensor]:
    r"""Return the weights between layers of nodes under hard memberships, by the names of the dense network.

    .. math:: w_{t,s} = \frac{|C_t \cap C_s|}{k} \widetilde{w}_{t,s}

    for a network that learned under masks (Murdock et al., CVPR 2016, eq. 4); for a plain dense one, a weight is kept
    as it is where its nodes share a cluster, and is zero elsewhere.
    """
    if isinstance(learned, Blockout):
        return learned.masked_weights(memberships)
    kept = {}
    dense = network_of(learned)
    for connection in dense.connections:
        if connection.source_nodes is not None and memberships.keys() >= set(connection.layers):
            source, target = connection.source_nodes.of(memberships), connection.target_nodes.of(memberships)
            weight = dense.get_parameter(connection.weight)
            mask = (common_clusters(target, source, groups=connection.groups) > 0).to(weight.dtype)
            kept[connection.weight] = weight * mask[(...,) + (None,) * (weight.dim() - 2)]
    return kept


def logits_under(learned: Learned, images: Tensor, memberships: Mapping[str, Tensor]) -> Tensor:
    """Return the logits of a learned network in eval mode under hard memberships, shape ``(batch, classes)``."""
    result: Tensor = functional_call(network_of(learned), weights_under(learned, memberships), (images,))
    return result


@torch.no_grad()
def transplant(learned: Learned, distilled: Distilled, branched: Network) -> None:
    """Write the weights of a learned network into a branched one, in place.

    Args:
        learned: What learned; a dense network, or a method over one.
        distilled: Which nodes stand where.
        branched: Built from ``distilled.architecture`` and the same stages or graph; it receives the weights as
            `weights_under` gives them, biases and the statistics of normalization.
    """
    dense = network_of(learned)
    dtype = next(dense.parameters()).dtype
    weights = weights_under(learned, {name: value.to(dtype) for name, value in distilled.memberships.items()})
    if not isinstance(dense, BranchedNetwork):
        state = {**dense.state_dict(), **weights}
        branched.load_state_dict(dense.branched(distilled.architecture, distilled.nodes, state).state_dict())
        return
    assert isinstance(branched, BranchedNetwork)
    order = _memory_order(distilled, dense, branched)
    before = torch.arange(next(iter(dense.parameters())).shape[1])
    for stage in dense.plan:
        name = f"stages.{stage.name}.operations.0.weight"
        source, target = dense.stages[stage.name], branched.stages[stage.name]
        assert isinstance(source, BranchedStage)
        assert isinstance(target, BranchedStage)
        weight = weights.get(name, dense.get_parameter(name))
        _fill(source, target, weight, before, order[stage.name])
        before = order[stage.name]
    if dense.normalize_logits is not None and branched.normalize_logits is not None:
        branched.normalize_logits.load_state_dict(dense.normalize_logits.state_dict())


@torch.no_grad()
def logits_of_both(
    learned: Learned,
    distilled: Distilled,
    branched: Network,
    images: Tensor,
    *,
    hard: Mapping[str, Tensor] | None = None,
    training: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the logits of the learned network under hard memberships, and of the branched one with its weights.

    Both networks are copied, the weights are transplanted, and everything is computed in the precision of `images`.

    Args:
        learned: What learned.
        distilled: What the branched network is built from.
        branched: Any network of that architecture; its own weights are not used.
        images: One batch.
        hard: Memberships for the learned network, as zeros and ones; None for those of `distilled`.
        training: Whether batch normalization uses the statistics of these images, as in training, instead of its own.
    """
    first, second = copy.deepcopy(learned).to(images.dtype).eval(), copy.deepcopy(branched).to(images.dtype).eval()
    transplant(first, distilled, second)
    memberships = distilled.memberships if hard is None else hard
    if training:
        network_of(first).train()
        second.train()
    expected = logits_under(first, images, {name: value.to(images.dtype) for name, value in memberships.items()})
    return expected, second(images)


def largest_difference(
    learned: Learned,
    distilled: Distilled,
    branched: Network,
    images: Tensor,
    *,
    hard: Mapping[str, Tensor] | None = None,
    training: bool = False,
) -> float:
    """Return the largest absolute difference of the logits of both networks; arguments as of `logits_of_both`."""
    masked, found = logits_of_both(learned, distilled, branched, images, hard=hard, training=training)
    return float((masked - found).abs().max())


def equality_of(expected: Tensor, found: Tensor) -> dict[str, float]:
    """Return how far logits are from those that they should equal, the bound for their precision, and their spread.

    Args:
        expected: Shape ``(images, classes)``, in one of the precisions of `TOLERANCE`.
        found: Likewise.
    """
    return {
        "max_abs_difference": float((expected - found).abs().max()),
        # Rounding grows with the logits.
        "bound": TOLERANCE[expected.dtype] * max(1.0, float(expected.abs().max())),
        # Networks whose logits are the same for all images would be equal for nothing.
        "spread": float((expected.amax(0) - expected.amin(0)).max()),
    }


def network_of(learned: Learned) -> Branchable:
    """Return the dense network that learned, without the masks over it."""
    network = learned.network if isinstance(learned, Blockout | Darts) else learned
    assert isinstance(network, Branchable), "only a network that knows its layers can be distilled"
    return network


def wiring_of(learned: Learned) -> Wiring | None:
    """Return which layers read which and under which masks; None for a chain of stages, masked up to its end."""
    network = network_of(learned)
    if isinstance(network, BranchedNetwork):
        return None
    return Wiring.of(network, learned.masked_connections if isinstance(learned, Blockout) else None)


def _grouped(
    name: str, kept: Mapping[str, Tensor], wiring: Wiring, sources: Sequence[str], p: Tensor
) -> tuple[Layer, tuple[Tensor, ...]]:
    """Return a layer and the nodes of its groups; the most probable stays as a constant where nothing else does."""
    last, images = name == wiring.names[-1], (None, name) in wiring.edges
    # In a chain what the first layer reads is not masked: a class without clusters could not be told from the others.
    whole = name in wiring.rigid or (last and not (images and wiring.is_chain))
    rows: dict[tuple[int, ...], list[int]] = {}
    for node, row in enumerate(kept[name].tolist()):
        member = tuple(cluster for cluster, belongs in enumerate(row) if belongs)
        if member or whole:
            rows.setdefault(member, []).append(node)
    ordered = sorted(rows.items()) or [((), [int(p.detach().amax(1).argmax())])]
    read = torch.ones_like(kept[name]) if images else torch.cat([kept[source] for source in sources])
    available = read.any(0).tolist()
    groups = tuple(
        Group(member, len(nodes), tuple(nodes) if last else None, constant=not any(available[each] for each in member))
        for member, nodes in ordered
    )
    return Layer(name, groups, name in wiring.rigid and not last), tuple(torch.tensor(nodes) for _, nodes in ordered)


def _numbered(layer: Layer, nodes: Sequence[Tensor]) -> Layer:
    """Return a layer whose groups say which nodes of the whole network they are."""
    groups = (
        group if group.classes is not None else replace(group, nodes=tuple(members.tolist()))
        for group, members in zip(layer.groups, nodes, strict=True)
    )
    return replace(layer, groups=tuple(groups))


def _memory_order(distilled: Distilled, dense: BranchedNetwork, branched: BranchedNetwork) -> dict[str, Tensor]:
    order = {stage.name: torch.arange(stage.width) for stage in dense.plan}
    groups = node_order(branched.full, 1)[-len(distilled.nodes) :]
    for (name, nodes), positions in zip(distilled.nodes.items(), groups, strict=True):
        order[name] = torch.cat([nodes[position] for position in positions])
    return order


def _fill(source: BranchedStage, target: BranchedStage, weight: Tensor, before: Tensor, nodes: Tensor) -> None:
    """Copy rows and columns of one dense operation into the bundles of a branched stage."""
    bias = source.get_parameter("operations.0.bias") if source.normalize is None else None
    start = 0
    for index, ranges in enumerate(target.ranges):
        target_weight = target.get_parameter(f"operations.{index}.weight")
        rows = nodes[start : start + len(target_weight)]
        if ranges:  # constants have no weights
            columns = torch.cat([before[first:last] for first, last in ranges])
            target_weight.copy_(weight[rows][:, columns])
        if bias is not None:
            target.get_parameter(f"operations.{index}.bias").copy_(bias[rows])
        start += len(rows)
    if source.normalize is not None and target.normalize is not None:
        state = {
            key: value if value.dim() == 0 else value[nodes] for key, value in source.normalize.state_dict().items()
        }
        target.normalize.load_state_dict(state)
