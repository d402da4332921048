r"""Blockout: a hierarchical structure that is learned by back-propagation while the network trains.

Every node of a layer belongs to each of `k` clusters with a learned probability. A weight is used where its two nodes
share a cluster, so that a draw of the memberships is a draw of a hierarchical architecture. It works for any
network that lists which weights connect which layers of nodes (`Connection`); for one forward pass, these weights are
replaced by their masked values.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from nas_blockout.methods.expected_cost import MOST_CLUSTERS, NO_OTHERS, ExpectedMacs
from nas_blockout.methods.masking import (
    Assignments,
    binary_masked_weight,
    entries_without_node,
    expected_entries,
    expected_nodes,
    expected_share,
    lazily_masked,
    masked_weight,
    sides,
)
from nas_blockout.methods.memberships.blockout_settings import BlockoutSettings
from nas_blockout.methods.memberships.description import describe, shared_pairs
from nas_blockout.methods.memberships.initial import depths, initial_logits
from nas_blockout.methods.random_masks import draw_memberships
from nas_blockout.networks import Branchable, Connection, masked_connections, masked_widths, require_weights
from nas_blockout.randomness.draws import Randomness, in_one_piece, random_uniforms
from nas_blockout.training_protocol import ParameterGroup, TelemetryValue, TrainableModel, plain_groups

_FARTHEST = 40.0  # of a logit that is moved: beyond it P is 0 or 1 in single precision
_BISECTIONS = 40
_NARROWING = ("cpu", "cuda", "xpu", "mps")  # devices that know autocast; others refuse to be asked


class Blockout(TrainableModel):
    """A network whose weights are masked by cluster memberships that are learned with them.

    In training one C is drawn for every layer of nodes and mini-batch, and shared by the weights on both of its sides.
    In eval P stands for C (eq. 5), nothing is drawn, and `fold` gives the plain network that computes the same.

    Args:
        network: Any network whose ``forward(x, generator)`` gives logits.
        connections: All weights of the network between layers of nodes, in the order of the forward pass. Layers of
            nodes that a masked weight reads or ends in carry memberships.
        settings: What to learn and how.
        magnitudes: Of the nodes of each layer, standardized, shape ``(nodes,)``; needed for a `magnitude_spread`. A
            layer that is left out starts as without.

    Raises:
        ValueError: There are more clusters than nodes in a masked layer, the network lacks a layer that is to be
            masked, or a connection does not fit the network or another connection.

    References:
        Murdock, Li, Zhou, Duerig. Blockout: Dynamic Model Selection for Hierarchical Deep Networks. CVPR 2016,
        sections 4 to 6.

    Differs from the paper in: convolutions, the estimators other than ``masked``, initial probabilities by depth, and
    the charge, polarization, balance and disjointness terms, which are all off by default; and initial weights are
    rescaled unless `rescale` is off.
    """

    _ramp: Tensor

    def __init__(
        self,
        network: nn.Module,
        connections: Sequence[Connection],
        settings: BlockoutSettings,
        magnitudes: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.connections = tuple(connections)
        self.ramp = 1.0
        self.register_buffer("_ramp", torch.ones((), dtype=torch.float64), persistent=False)  # for compiled steps
        require_weights(network, self.connections)
        self.masked_connections = masked_connections(self.connections, settings.masked)
        widths = masked_widths(self.connections, self.masked_connections)
        self.layers = tuple(widths)
        """Names of the layers of nodes that carry memberships, from the image to the classes."""
        self._widths = list(widths.values())
        if settings.magnitude_spread and magnitudes is None:
            raise ValueError(f"magnitudes must be given for magnitude_spread={settings.magnitude_spread}, got none")
        self.logits = nn.ParameterDict()  # filled one by one: given a dictionary, it would sort the layers by name
        for name, value in initial_logits(widths, settings, magnitudes or {}).items():
            self.logits[_key(name)] = nn.Parameter(value, requires_grad=settings.mode != "hard-fixed")
        # Not cached properties, whose locks a compiled step cannot take.
        self._masked_names = frozenset(connection.weight for connection in self.masked_connections)
        self._always = self._never_dropped()
        others = network.other_macs if isinstance(network, Branchable) else NO_OTHERS
        self._other_macs = round(sum(float(each.sum()) for each in others.values()))
        with torch.device("cpu"):  # it computes with numbers of nodes, which have values also where weights have none
            self._expected_macs = ExpectedMacs(
                self.connections, masked=self._masked_names, widths=widths, always=self._always, others=others
            )
        if settings.start_at == "cost_target":
            self._shift_to(settings.cost_target)
        if settings.rescale:
            self._rescale()

    @torch.no_grad()
    def _shift_to(self, share: float) -> None:
        """Move all logits but those of the classes alike, until the expected MACs are a share of the dense ones."""
        start = {name: self.logits[_key(name)].clone() for name in self.layers[:-1]}
        low, high = -_FARTHEST, _FARTHEST
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            for name, value in start.items():
                self.logits[_key(name)].copy_(value + middle)
            above = float(self.expected_macs(self.probabilities())) > share * self.dense_macs()
            low, high = (low, middle) if above else (middle, high)

    def probabilities(self) -> dict[str, Tensor]:
        """Return P of every masked layer, shape ``(nodes, k)`` each, attached to the graph."""
        return self._by_layer(torch.sigmoid(self._joined_logits()))

    def _joined_logits(self) -> Tensor:
        """Return the logits of all layers, shape ``(nodes, k)``: what is done to them is one operation for all."""
        return torch.cat([self.logits[_key(name)] for name in self.layers])

    def _by_layer(self, joined: Tensor) -> dict[str, Tensor]:
        """Divide rows, one for each node of all layers, among the layers."""
        return dict(zip(self.layers, joined.split(self._widths), strict=True))

    def draw(self, generator: Randomness | None) -> dict[str, Tensor]:
        """Return the memberships of one training step: a draw of C, or P itself in mode ``soft-learned``."""
        if self.settings.mode == "soft-learned":
            return self.probabilities()
        if generator is None:
            raise ValueError(
                "Blockout needs a generator in training: call model(x, generator=torch.Generator().manual_seed(0))"
            )
        joined = draw_memberships(torch.sigmoid(self._joined_logits()), generator, estimator=self.settings.estimator)
        return self._by_layer(joined)

    def masked_weights(self, assignments: Assignments) -> dict[str, Tensor]:
        """Return the masked value of every masked weight by parameter name."""
        return {connection.weight: self._scaled(connection, *parts) for connection, *parts in self._masked(assignments)}

    def _scaled(
        self, connection: Connection, weight: Tensor, c_out: Tensor, c_in: Tensor, *, lazily: bool = False
    ) -> Tensor:
        """Return the masked value of a weight, or what stands in for it in a linear layer."""
        assert connection.source_nodes is not None
        if self.settings.mask_values == "binary":
            masked = binary_masked_weight(weight, c_out, c_in, groups=connection.groups)
        else:
            scale = lazily_masked if lazily and connection.source_nodes.are_all else masked_weight
            masked = scale(weight, c_out, c_in, groups=connection.groups)
        if connection.source_nodes.are_all:
            return masked
        unread = entries_without_node(connection, weight.device)
        return torch.where(unread[(...,) + (None,) * (weight.dim() - 2)], weight, masked)

    def _masked(self, assignments: Assignments) -> Iterator[tuple[Connection, Tensor, Tensor, Tensor]]:
        """Yield every masked weight: its connection, its value, and the memberships of its output and input nodes."""
        for connection in self.masked_connections:
            if found := sides(connection, assignments):
                yield connection, self.network.get_parameter(connection.weight), *found

    def with_memberships(self, x: Tensor, assignments: Assignments, generator: Randomness | None = None) -> Tensor:
        """Return the logits under given memberships, shape ``(batch, classes)``."""
        kind = x.device.type
        narrows = kind in _NARROWING and torch.is_autocast_enabled(kind)
        lazily = not (narrows or in_one_piece(generator))
        # Weights are masked as they are, and narrowed where they are used.
        with torch.autocast(kind, enabled=False) if narrows else nullcontext():
            masked = {
                connection.weight: self._scaled(connection, *parts, lazily=lazily)
                for connection, *parts in self._masked(assignments)
            }
        result: Tensor = functional_call(self.network, masked, (x, generator))
        return result

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return logits, shape ``(batch, classes)``: under drawn memberships in training, under P in eval."""
        assignments = self.draw(generator) if self.training else self.probabilities()
        return self.with_memberships(x, assignments, generator)

    def loss(self, x: Tensor, y: Tensor, generator: Randomness) -> Tensor:
        """Return the criterion under one draw, plus the terms of the structure that are on."""
        if self.settings.estimator == "arm":
            return self._arm_loss(x, y, generator) + self.penalty()
        return self.criterion(self(x, generator), y) + self.penalty()

    def penalty(self) -> Tensor:
        """Return the structure's own terms of the loss; zero if all are off."""
        settings, p = self.settings, self.probabilities()
        total = next(iter(p.values())).new_zeros(())
        if settings.cost_penalty:
            share = self.expected_macs(p) / self.dense_macs()
            beyond = share - settings.cost_target
            beyond = beyond.abs() if settings.cost_penalty_sides == "both" else F.relu(beyond)
            total = total + (settings.cost_penalty * self._ramp).to(total.dtype) * beyond
        if settings.polarization:
            weight = (settings.polarization * self._ramp).to(total.dtype)
            total = total + weight * torch.stack([(q * (1 - q)).mean() for q in p.values()]).mean()
        if settings.balance:
            total = total + settings.balance * torch.stack([q.mean(0).var(correction=0) for q in p.values()]).mean()
        if settings.disjointness and settings.clusters > 1:
            weight = (settings.disjointness * self._ramp).to(total.dtype)
            shares = torch.stack([shared_pairs(q) for q in p.values()])
            by_depth = shares.new_tensor(depths(len(p), settings))
            total = total + weight * (by_depth * shares).sum() / by_depth.sum()
        return total

    def expected_macs(self, probabilities: Assignments) -> Tensor:
        """Return the expected multiply-accumulates an image of the network after a draw, differentiable in P.

        A masked weight is used where its two nodes share a cluster. Any other weight is used unless the node that it
        ends in is dropped: a node that has no cluster, and that only masked weights read.
        """
        if self.settings.clusters <= MOST_CLUSTERS:
            return self._expected_macs(probabilities)
        parts = []
        for connection in self.connections:
            if connection.weight in self._masked_names:
                kept = expected_entries(connection, probabilities)
            else:
                droppable = {name: p for name, p in probabilities.items() if name not in self._always}
                kept = expected_nodes(connection.target_nodes, droppable, like=next(iter(probabilities.values())))
            # One entry of `kept` stands for a window of weights, and for all inputs where these have no memberships.
            macs_per_entry = math.prod(connection.shape) / kept.numel() * connection.positions
            parts.append(kept.sum() * macs_per_entry)
        return torch.stack(parts).sum()

    def _never_dropped(self) -> frozenset[str]:
        """Layers whose nodes stay without a cluster, too."""
        rigid = self.network.rigid if isinstance(self.network, Branchable) else {}
        unmasked = (each for each in self.connections if each.weight not in self._masked_names)
        return frozenset(rigid) | {layer for each in unmasked for layer in each.sources}

    def dense_macs(self) -> int:
        """Return the multiply-accumulates an image of the network without masks."""
        return self._other_macs + sum(math.prod(each.shape) * each.positions for each in self.connections)

    def prepare_epoch(self, epoch: int, epochs: int) -> None:
        """Set how much of the charge applies: it rises linearly over the first `cost_warmup` of the epochs."""
        length = self.settings.cost_warmup * epochs
        self.ramp = min(1.0, epoch / length) if length else 1.0
        self._ramp.fill_(self.ramp)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the network's parameters, then the memberships, with their own learning rate and no decay."""
        groups = plain_groups(self.network)
        if self.settings.mode != "hard-fixed":
            multiplier = self.settings.structure_lr_multiplier
            groups.append({"params": list(self.logits.values()), "lr_multiplier": multiplier, "weight_decay": False})
        return groups

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """Return a copy of the plain network with the weights of eq. 5 in place: the same function at no cost."""
        folded = copy.deepcopy(self.network)
        for name, weight in self.masked_weights(self.probabilities()).items():
            folded.get_parameter(name).copy_(weight)
        return folded

    @torch.no_grad()
    def telemetry(self) -> dict[str, TelemetryValue]:
        """Describe P once an epoch: mean, entropy in bits, share beyond .05/.95, clusters a node, density, alarm.

        The alarm ``blockout/collapse/<layer>`` is 0 for none, 1 for all ones, 2 for all zeros, 3 for one cluster.
        """
        p = self.probabilities()
        record: dict[str, TelemetryValue] = {}
        for name, values in p.items():
            record |= {f"blockout/{key}/{name}": value for key, value in describe(values).items()}
        record["blockout/expected_macs"] = float(self.expected_macs(p)) / self.dense_macs()
        record["blockout/effective_parameters"] = sum(
            float((_sums(p_in, connection.groups) * _sums(p_out, connection.groups)).sum()) / self.settings.clusters
            for connection, _, p_out, p_in in self._masked(p)
        )
        return record

    def _arm_loss(self, x: Tensor, y: Tensor, generator: Randomness) -> Tensor:
        """Augment, REINFORCE, merge: two antithetic draws give an unbiased gradient of the expected loss.

        References:
            Yin, Zhou. ARM: Augment-REINFORCE-Merge Gradient for Stochastic Binary Networks. ICLR 2019, eq. 9.
        """
        logits = self._joined_logits()
        uniform = random_uniforms(generator, tuple(logits.shape), logits.dtype, logits.device)
        first = self._by_layer((uniform < torch.sigmoid(logits)).to(uniform.dtype))
        second = self._by_layer((uniform > torch.sigmoid(-logits)).to(uniform.dtype))
        loss = self.criterion(self.with_memberships(x, first, generator), y)
        with torch.no_grad():
            other = self.criterion(self.with_memberships(x, second, generator), y)
        # Adds 0 to the value, and gap * (u - 1/2) to the gradient of the logits, which is the estimator.
        gap, surrogate = other - loss.detach(), ((uniform - 0.5) * logits).sum()
        return loss + gap * (surrogate - surrogate.detach())

    @torch.no_grad()
    def _rescale(self) -> None:
        for connection, weight, p_out, p_in in self._masked(self.probabilities()):
            if self.settings.mask_values == "binary":
                weight.div_(float(expected_share(p_out, p_in, groups=connection.groups).mean()))
                continue
            # Mean of (C_out C_in^T) / k: the draws are independent, and P is nearly the same in all clusters.
            weight.div_(float(p_in.mean() * p_out.mean()))


def _key(layer: str) -> str:
    """Return the name of a layer's parameter, which may hold no dots, as the paths of modules do."""
    return layer.replace(".", "/")


def _sums(memberships: Tensor, groups: int) -> Tensor:
    """Return the sum over the nodes of each group, shape ``(groups, k)``."""
    sums: Tensor = memberships.unflatten(0, (groups, -1)).sum(1)
    return sums
