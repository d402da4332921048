r"""Differentiable search over fixed hierarchies: the branch of every class and the width of every branch, relaxed.

A fixed hierarchy decides which classes share a branch and how wide each branch is. A supernet holds all of these
hierarchies: what is read of a layer is the mixture of its values under all choices, weighted by a softmax over
architecture parameters, so that these are learned by gradient, on images that the weights are not trained on. The most
probable choices are one architecture, which is derived and trained on like any other.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from nas_blockout.methods.masking import entries_without_node, masked_weight
from nas_blockout.methods.supernet.darts_settings import DartsSettings
from nas_blockout.methods.supernet.expected_macs import ExpectedMacsOfChoices, compatible
from nas_blockout.methods.supernet.hierarchy_choices import HierarchyChoices
from nas_blockout.networks import Branchable, Connection
from nas_blockout.randomness.draws import Randomness, random_uniforms
from nas_blockout.training_protocol import (
    ParameterGroup,
    TelemetryValue,
    TrainableModel,
    is_held_batch,
    plain_groups,
)

_INITIAL_NOISE = 1e-3  # standard deviation of the architecture parameters before the first step, as in DARTS
_NARROWING = ("cpu", "cuda", "xpu", "mps")  # devices that know autocast; others refuse to be asked


@dataclass(frozen=True, slots=True, eq=False)
class Distributions:
    """The weights of all choices of a step; each row sums to one.

    Args:
        classes: Of the branches of every class, shape ``(classes, branches)``.
        widths: Of the widths of every group of nodes, shape ``(groups, widths)``.
    """

    classes: Tensor
    widths: Tensor


class Darts(TrainableModel):
    r"""A network that mixes fixed hierarchies of one number of branches, all of which use its weights.

    With :math:`\alpha_c` the weights of the branches of class c, and :math:`\beta_w` those of the widths of a group of
    nodes, of which width w keeps the first :math:`n_w`, what is read of a node and what a class reads are

    .. math:: \bar h_s = \sum_w \beta_w\, [s \le n_w]\, h_s, \qquad
        z_c = b_c + \sum_b \alpha_{c,b} \sum_{s \in b} W_{c,s}\, \bar h_s

    which is the network with each weight scaled by a number. Steps of the weights and of the architecture parameters
    alternate; each has a gradient for its own parameters only, and the training loop gives the latter images that it
    holds from the former. In eval the mixture is of the softmax without noise, and `fold` gives the plain network that
    computes the same.

    Args:
        network: Dense.
        settings: What to choose between, and how it is learned.
        accumulation: Batches of one step of the optimizer.

    Attributes:
        turn: Whose step the next batch is.

    Raises:
        Conflict: There are more branches than classes or than nodes of a layer that branches, or fewer layers than are
            to branch.

    References:
        Liu, Simonyan, Yang. DARTS: Differentiable Architecture Search. ICLR 2019: eq. 2, and algorithm 1 with its
        first-order approximation.
        Wan et al. FBNetV2: Differentiable Neural Architecture Search for Spatial and Channel Dimensions. CVPR 2020:
        widths as masks of channels.
        Wu et al. FBNet: Hardware-Aware Efficient ConvNet Design via Differentiable Neural Architecture Search. CVPR
        2019: Gumbel softmax with an annealed temperature, and a term for expected cost.

    Differs from the papers in: what is chosen is the hierarchy and not the operations of a cell, weights and
    architecture parameters share the optimizer, with learning rates of their own, and the cost is a distance to a
    target rather than a factor or a summand.
    """

    _temperature: Tensor
    _ramp: Tensor
    _done: Tensor
    _lost: Tensor
    _group_of: Tensor
    _branch_of: Tensor

    def __init__(self, network: Branchable, settings: DartsSettings, *, accumulation: int = 1) -> None:
        super().__init__()
        self.accumulation = accumulation
        self.network = network
        self.settings = settings
        self.choices = choices = HierarchyChoices.of(network, settings)
        *_, classes = choices.layers.values()
        self.class_logits = nn.Parameter(_INITIAL_NOISE * torch.randn(classes, settings.branches))
        self.width_logits = nn.Parameter(_INITIAL_NOISE * torch.randn(len(choices.groups), len(settings.widths)))
        self.turn: Literal["weights", "architecture"] = "weights"
        # Kept in checkpoints: what is derived depends on it, also where no epoch was left to train.
        self.register_buffer("_temperature", torch.tensor(settings.temperature, dtype=torch.float64))
        self.register_buffer("_done", torch.zeros((), dtype=torch.long))  # batches of the epoch
        self.register_buffer("_ramp", torch.ones((), dtype=torch.float64), persistent=False)
        like = self.class_logits
        self.register_buffer("_lost", (~choices.kept).to(like), persistent=False)
        self.register_buffer("_group_of", choices.group_of.clamp(min=0).to(like.device), persistent=False)
        one_of = F.one_hot(choices.branch_of, settings.branches + 1)
        self.register_buffer("_branch_of", one_of.to(like), persistent=False)
        self._masked = tuple(
            each
            for each in network.connections
            if each.source_nodes is not None and not each.filters_each_node_alone  # which reads no other node
        )
        with torch.device("cpu"):  # numbers of nodes have values also where weights have none
            self._groups = self._by_layer(choices.group_of, torch.full((classes,), -1))
            self._expected_macs = ExpectedMacsOfChoices(network, frozenset(network.rigid))
            self._dense_macs = network.macs_under({})

    def distributions(self, generator: Randomness | None = None) -> Distributions:
        """Return the weights of all choices, attached to the graph.

        Args:
            generator: Of the Gumbel noise, where there is any; None for none.
        """
        return Distributions(self._weights(self.class_logits, generator), self._weights(self.width_logits, generator))

    def _weights(self, logits: Tensor, generator: Randomness | None) -> Tensor:
        if generator is not None and self.settings.relaxation == "gumbel":
            uniform = random_uniforms(generator, tuple(logits.shape), logits.dtype, logits.device)
            tiny = torch.finfo(uniform.dtype).tiny
            logits = logits - (-uniform.clamp_min(tiny).log()).clamp_min(tiny).log()
        return (logits / self._temperature.to(logits.dtype)).softmax(1)

    def expected(self, distributions: Distributions) -> dict[str, Tensor]:
        """Return by layer how probable it is of a node to be there and of each branch.

        Returns:
            Shape ``(nodes, branches + 1)``, the last column for nodes of all branches; attached to the graph.
        """
        # Of a node that all choices keep, this is 1 and not the rounded sum of their weights.
        there = 1 - (distributions.widths[self._group_of] * self._lost).sum(1, keepdim=True)
        return self._by_layer(self._branch_of * there, F.pad(distributions.classes, (0, 1)))

    def _by_layer(self, nodes: Tensor, classes: Tensor) -> dict[str, Tensor]:
        *names, last = self.choices.layers
        parts = nodes.split([self.choices.layers[name] for name in names])
        return {**dict(zip(names, parts, strict=True)), last: classes}

    def mixed_weights(self, distributions: Distributions) -> dict[str, Tensor]:
        """Return the value of every weight that reads nodes under the mixture, by parameter name."""
        return {each.weight: self._mixed(each, *parts) for each, *parts in self._sides(distributions)}

    def _sides(self, distributions: Distributions) -> Iterator[tuple[Connection, Tensor, Tensor, Tensor]]:
        """Yield every weight that is scaled: its connection, its value, what its outputs read, what its inputs are."""
        read = self.expected(distributions)
        writes = self._by_layer(self._branch_of, F.pad(distributions.classes, (0, 1)))
        reads = compatible(self.settings.branches, like=self._branch_of)
        for connection in self._masked:
            assert connection.source_nodes is not None
            target = connection.target_nodes.of(writes) @ reads
            yield (
                connection,
                self.network.get_parameter(connection.weight),
                target * target.shape[1],  # which a masked weight is divided by
                connection.source_nodes.of(read),
            )

    def _mixed(self, connection: Connection, weight: Tensor, target: Tensor, source: Tensor) -> Tensor:
        assert connection.source_nodes is not None
        mixed = masked_weight(weight, target, source, groups=connection.groups)
        if connection.source_nodes.are_all:
            return mixed
        unread = entries_without_node(connection, weight.device)
        return torch.where(unread[(...,) + (None,) * (weight.dim() - 2)], weight, mixed)

    def mixture(
        self,
        x: Tensor,
        distributions: Distributions,
        generator: Randomness | None = None,
        *,
        fixed: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the logits of the mixture, shape ``(batch, classes)``.

        Args:
            x: Images, shape ``(batch, channels, height, width)``.
            distributions: Weights of the choices.
            generator: Of the draws of the network's own layers.
            fixed: Values of parameters that take the place of the network's own, by name.
        """
        kind = x.device.type
        narrows = kind in _NARROWING and torch.is_autocast_enabled(kind)
        # Weights are mixed as they are, and narrowed where they are used.
        with torch.autocast(kind, enabled=False) if narrows else nullcontext():
            mixed = {
                connection.weight: self._mixed(
                    connection, weight if fixed is None else fixed[connection.weight], target, source
                )
                for connection, weight, target, source in self._sides(distributions)
            }
        result: Tensor = functional_call(self.network, {**(fixed or {}), **mixed}, (x, generator))
        return result

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return the logits of the mixture, shape ``(batch, classes)``; in eval, and with softmax, nothing is drawn."""
        return self.mixture(x, self.distributions(self._noise(generator)), generator)

    def _noise(self, generator: Randomness | None) -> Randomness | None:
        """Return what Gumbel noise is drawn from, if any is."""
        if not self.training or self.settings.relaxation == "softmax":
            return None
        if generator is None:
            raise ValueError(
                "Darts needs a generator in training: call model(x, generator=torch.Generator().manual_seed(0))"
            )
        return generator

    def loss(self, x: Tensor, y: Tensor, generator: Randomness) -> Tensor:
        """Return the loss of a step, with a gradient for the parameters whose turn it is and for no others."""
        distributions = self.distributions(self._noise(generator))
        if self.turn == "weights":
            detached = Distributions(distributions.classes.detach(), distributions.widths.detach())
            return self.criterion(self.mixture(x, detached, generator), y)
        fixed = {name: value.detach() for name, value in self.network.named_parameters()}
        return self.criterion(self.mixture(x, distributions, generator, fixed=fixed), y) + self.penalty()

    def penalty(self) -> Tensor:
        """Return the cost penalty, the term of the loss of the architecture parameters alone; zero if it is off."""
        settings, distributions = self.settings, self.distributions()
        total = distributions.classes.new_zeros(())
        if settings.cost_penalty:
            beyond = self.expected_macs(distributions) / self.dense_macs() - settings.cost_target
            beyond = beyond.abs() if settings.cost_penalty_sides == "both" else F.relu(beyond)
            total = total + (settings.cost_penalty * self._ramp * beyond).to(total.dtype)
        return total

    def expected_macs(self, distributions: Distributions) -> Tensor:
        """Return the expected multiply-accumulates an image of what is drawn from the distributions, float64."""
        return self._expected_macs(self.expected(distributions), self._groups)

    def dense_macs(self) -> int:
        """Return the multiply-accumulates an image of the network with all nodes and without branches."""
        return self._dense_macs

    @torch.no_grad()
    def memberships(self) -> dict[str, Tensor]:
        """Return what is derived from: the most probable branch of every class, and how probable every node is.

        A threshold makes of it the widest choice of every group that is at least so probable, counting all wider ones;
        of widths that are decided this is the most probable one.

        Returns:
            By layer, shape ``(nodes, branches)``: in the branches of a node the probability that it is there, else 0;
            of the classes 1 for one branch each.
        """
        found = self.distributions()
        best = F.one_hot(found.classes.argmax(1), self.settings.branches).to(found.classes)
        nodes = self.expected(Distributions(best, found.widths))
        return {name: value[:, :-1] + value[:, -1:] for name, value in nodes.items()}

    def prepare_epoch(self, epoch: int, epochs: int) -> None:
        """Set the temperature and how much of the cost penalty applies; an epoch begins with a step of the weights."""
        settings = self.settings
        ratio = settings.final_temperature / settings.temperature
        self._temperature.fill_(settings.temperature * ratio ** (epoch / max(1, epochs - 1)))
        length = settings.cost_warmup * epochs
        self._ramp.fill_(min(1.0, epoch / length) if length else 1.0)
        self._done.zero_()
        self._take_turn(0)

    def after_batch(self) -> None:
        """Give the next batch to whose turn it is."""
        self._batch += 1
        self._done += 1
        self._take_turn(self._batch)

    def _take_turn(self, batch: int) -> None:
        self._batch = batch
        held = is_held_batch(batch, self.settings.weight_steps + 1, self.accumulation)
        self.turn = "architecture" if held else "weights"

    def load_epoch_state(self, states: Sequence[Any]) -> None:
        """Go on inside an epoch: how many batches it had is a buffer, which every process has."""
        self._take_turn(int(self._done))

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the network's parameters, then those of the architecture, with a learning rate of their own."""
        multiplier = self.settings.structure_lr_multiplier
        chosen = [self.class_logits, self.width_logits]
        return [
            *plain_groups(self.network),
            {"params": chosen, "lr_multiplier": multiplier, "weight_decay": False},
        ]

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """Return a copy of the plain network with the weights of the mixture in place: the same function as in eval."""
        folded = copy.deepcopy(self.network)
        for name, weight in self.mixed_weights(self.distributions()).items():
            folded.get_parameter(name).copy_(weight)
        return folded

    @torch.no_grad()
    def telemetry(self) -> dict[str, TelemetryValue]:
        """Describe the choices once an epoch: expected cost, entropies in bits, widths, classes of each branch."""
        found = self.distributions()
        record: dict[str, TelemetryValue] = {
            "darts/expected_macs": float(self.expected_macs(found)) / self.dense_macs(),
            "darts/temperature": float(self._temperature),
            "darts/entropy/classes": _entropy(found.classes),
            "darts/entropy/widths": _entropy(found.widths) if len(found.widths) else 0.0,
            "darts/classes_of_branches": found.classes.sum(0).tolist(),
        }
        *names, _ = self.choices.layers
        expected = self.expected(found)
        return record | {f"darts/width/{name}": float(expected[name].sum(1).mean()) for name in names}


def _entropy(weights: Tensor) -> float:
    """Return the mean entropy of distributions in rows, in bits."""
    return float(-(torch.special.xlogy(weights, weights).sum(1).mean()) / math.log(2))
