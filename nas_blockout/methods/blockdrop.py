"""BlockDrop: a small policy network decides from the image, in one pass, which residual blocks of a network to run."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas_blockout.methods.block_routing import (
    ROUTES,
    BlockFlops,
    Inference,
    ResidualNetwork,
    block_flops,
    compacted_route,
    masked_route,
    path_statistics,
    statistics_kept,
)
from nas_blockout.methods.random_masks import generator_for
from nas_blockout.settings_fields import SEED, Conflict, Length, Range, check, refuse
from nas_blockout.training_protocol import ParameterGroup, TelemetryValue, TrainableModel, plain_groups

Policy = Literal["learned", "static", "all", "first", "random", "spread"]
Estimator = Literal["reinforce", "straight-through", "gumbel"]
Phase = Literal["pretrain", "policy", "joint"]

_CERTAIN = 1e4  # a logit whose probability is 1; finite, as exported weights must be


@dataclass(frozen=True, slots=True)
class BlockDropSettings:
    """Settings of BlockDrop.

    Args:
        policy: ``learned`` depends on the image, ``static`` learns one path for all images; the baselines keep ``all``
            blocks, the ``first`` ones, a ``random`` selection, or blocks ``spread`` evenly.
        kept_blocks: Blocks that ``first``, ``random`` and ``spread`` keep; None for the other policies.
        estimator: How the policy learns: ``reinforce`` (the paper's), or ``straight-through`` or ``gumbel`` gates.
        alpha: Paths are drawn from probabilities in ``[1 - alpha, alpha]``.
        penalty: gamma; the reward of a wrong prediction is ``-penalty``.
        entropy: Weight of the entropy bonus while only the policy learns.
        cost_penalty: Weight of the mean squared share of blocks in the loss of gates.
        temperature: Temperature of ``gumbel`` gates.
        pretrain_fraction: Share of the epochs that train the network with all blocks; 0 if it is already trained.
        policy_fraction: Share of the epochs that train the policy alone, with the network frozen.
        blocks_per_epoch: Blocks, starting from the last, that the policy takes control of in each of these epochs.
        policy_widths: Channels of the stages of the policy network, one block each.
        policy_pool: Side of the mean pooling of the policy's input; 1 for none.
        policy_lr_multiplier: Learning rate of the policy as a multiple of the network's.
        initial_keep: Approximate initial probability of keeping a block.
        inference: How eval skips blocks: ``compacted`` runs each block on the images that keep it, ``grouped`` runs the
            images of equal paths together, ``masked`` runs all blocks and saves no time.
        seed: Seed of the path of ``random``.
    """

    policy: Policy = "learned"
    kept_blocks: Annotated[int, Range(ge=1)] | None = None
    estimator: Estimator = "reinforce"
    alpha: Annotated[float, Range(gt=0.5, lt=1)] = 0.8
    penalty: Annotated[float, Range(ge=0)] = 1.0
    entropy: Annotated[float, Range(ge=0)] = 0.1
    cost_penalty: Annotated[float, Range(ge=0)] = 1.0
    temperature: Annotated[float, Range(gt=0)] = 1.0
    pretrain_fraction: Annotated[float, Range(ge=0, le=1)] = 0.5
    policy_fraction: Annotated[float, Range(ge=0, le=1)] = 0.25
    blocks_per_epoch: Annotated[int, Range(ge=1)] = 1
    policy_widths: Annotated[tuple[Annotated[int, Range(ge=1)], ...], Length(1)] = (16, 32, 64)
    policy_pool: Annotated[int, Range(ge=1)] = 1
    policy_lr_multiplier: Annotated[float, Range(gt=0)] = 1.0
    initial_keep: Annotated[float, Range(gt=0, lt=1)] = 0.5
    inference: Inference = "compacted"
    seed: Annotated[int, SEED] = 0

    def __post_init__(self) -> None:
        check(self)
        refuse(self._conflicts())

    def _conflicts(self) -> Iterator[Conflict]:
        if (self.kept_blocks is not None) != (self.policy in ("first", "random", "spread")):
            message = (
                f"kept_blocks belongs to the policies first, random and spread, and to no other, "
                f"got kept_blocks={self.kept_blocks} for policy={self.policy!r}"
            )
            yield Conflict(message, "kept_blocks", "policy")
        rest = 1 - self.pretrain_fraction
        if self.policy_fraction > rest:
            message = (
                f"policy_fraction must be at most {rest:g}, what pretrain_fraction leaves, "
                f"got policy_fraction={self.policy_fraction}"
            )
            yield Conflict(message, "policy_fraction", "pretrain_fraction")

    @property
    def learns(self) -> bool:
        """Whether the policy has parameters."""
        return self.policy in ("learned", "static")


def bounded(probabilities: Tensor, alpha: float) -> Tensor:
    r"""Return the probabilities that paths are drawn from, :math:`s' = \alpha s + (1 - \alpha)(1 - s)`."""
    return alpha * probabilities + (1 - alpha) * (1 - probabilities)


def rewards(keep: Tensor, right: Tensor, *, penalty: float) -> Tensor:
    r"""Return the reward of every image.

    .. math:: R(u) = 1 - (|u|_0 / K)^2 \text{ if the prediction is right, else } -\gamma

    Args:
        keep: u, the blocks that each image keeps, bool, shape ``(batch, blocks)``.
        right: Whether each prediction is right, bool, shape ``(batch,)``.
        penalty: gamma.

    Returns:
        Shape ``(batch,)``.
    """
    used = keep.float().mean(1)
    return torch.where(right, 1 - used.square(), -penalty)


def policy_loss(
    probabilities: Tensor, keep: Tensor, advantage: Tensor, controlled: Tensor, *, entropy: float
) -> Tensor:
    r"""Return the REINFORCE loss of the policy with its entropy bonus.

    .. math:: -\frac{1}{n} \sum_i \Bigl[ A_i \sum_k \log \pi_k(u_{ik}) + \beta \sum_k H(\pi_k) \Bigr]

    Its gradient is an unbiased estimate of minus that of the expected reward, as the advantage depends on the draw
    through the reward alone. Both sums over k are over the blocks under control.

    Args:
        probabilities: s', shape ``(batch, blocks)``, inside [0, 1].
        keep: u, the drawn paths, bool, shape ``(batch, blocks)``.
        advantage: A, reward less baseline, shape ``(batch,)``; no gradient flows through it.
        controlled: Blocks under control, bool, shape ``(blocks,)``.
        entropy: beta, the weight of the bonus.
    """
    log_probability: Tensor = -F.binary_cross_entropy(probabilities, keep.to(probabilities.dtype), reduction="none")
    uncertainty = torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)
    terms = advantage.detach().unsqueeze(1) * log_probability + entropy * uncertainty
    loss: Tensor = -(terms * controlled).sum(1).mean()
    return loss


def straight_through_gates(logits: Tensor) -> Tensor:
    """Return gates that are 1 where the probability is .5 or more and else 0, with the gradient of the probability."""
    soft = torch.sigmoid(logits)
    return (soft >= 0.5).to(soft.dtype) + soft - soft.detach()


def gumbel_gates(logits: Tensor, generator: torch.Generator, *, temperature: float) -> Tensor:
    """Return gates drawn 1 with the probability ``sigmoid(logits)``, with the gradient of the relaxed draw.

    References:
        Maddison, Mnih, Teh. The Concrete Distribution. ICLR 2017, appendix B. Jang, Gu, Poole. Categorical
        Reparameterization with Gumbel-Softmax. ICLR 2017, section 2.2 for the hard draw.
    """
    tiny = torch.finfo(logits.dtype).tiny
    uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
    noise = torch.log(uniform.clamp_min(tiny)) - torch.log1p(-uniform)
    soft = torch.sigmoid((logits + noise) / temperature)
    return (soft >= 0.5).to(soft.dtype) + soft - soft.detach()


def controlled_blocks(epoch: int, blocks: int, *, per_epoch: int = 1) -> int:
    """Return how many blocks, from the last on, are under control in an epoch of the curriculum, counted from 0."""
    return min(blocks, per_epoch * (epoch + 1))


def phase_of(epoch: int, epochs: int, settings: BlockDropSettings) -> tuple[Phase, int]:
    """Return the phase that an epoch belongs to and the number of the epoch inside it, from 0.

    A policy that learns nothing has no phase of its own: its epochs are epochs of fine-tuning, so that controls are
    trained as long.
    """
    pretrain = round(settings.pretrain_fraction * epochs)
    joint = (
        min(epochs, round((settings.pretrain_fraction + settings.policy_fraction) * epochs))
        if settings.learns
        else pretrain
    )
    if epoch < pretrain:
        return "pretrain", epoch
    return ("policy", epoch - pretrain) if epoch < joint else ("joint", epoch - joint)


def fixed_path(policy: Policy, blocks: int, kept: int | None, *, seed: int = 0) -> Tensor:
    """Return the path of a control for all images, bool, shape ``(blocks,)``.

    Args:
        policy: ``all``, ``first``, ``random`` (one draw) or ``spread``.
        blocks: Blocks of the network.
        kept: Blocks to keep, in 1..blocks; unused by ``all``.
        seed: Of the draw.

    Raises:
        ValueError: More blocks are to be kept than there are.
    """
    kept = blocks if kept is None else kept
    if not 1 <= kept <= blocks:
        raise ValueError(f"kept_blocks must lie in 1..{blocks}, the blocks of the network, got kept_blocks={kept}")
    chosen = torch.arange(kept)
    if policy == "random":
        chosen = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed))[:kept]
    elif policy == "spread":
        chosen = ((chosen + 0.5) * blocks / kept).long()
    return torch.zeros(blocks, dtype=torch.bool).index_fill(0, chosen, True)


class PolicyNetwork(nn.Module):
    """A small residual network, one block a stage, that gives one logit a block of the network that it steers.

    Args:
        channels: Channels of an image.
        blocks: Blocks that are steered.
        settings: ``policy_widths``, ``policy_pool`` and ``initial_keep``.
    """

    def __init__(self, channels: int, blocks: int, settings: BlockDropSettings) -> None:
        from nas_blockout.lazy_torchvision import torchvision  # which takes two seconds, and only this network needs it

        super().__init__()
        first, *_ = widths = settings.policy_widths
        layers: list[nn.Module] = [nn.AvgPool2d(settings.policy_pool)] if settings.policy_pool > 1 else []
        layers += [nn.Conv2d(channels, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU(inplace=True)]
        layers.append(torchvision.models.resnet.BasicBlock(first, first))
        for inputs, outputs in pairwise(widths):
            projection = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))
            layers.append(torchvision.models.resnet.BasicBlock(inputs, outputs, 2, projection))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(widths[-1], blocks)
        nn.init.constant_(self.linear.bias, float(torch.tensor(settings.initial_keep).logit()))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(batch, blocks)`` of images ``(batch, channels, height, width)``."""
        logits: Tensor = self.linear(self.features(x).mean((2, 3)))
        return logits


class StaticPolicy(nn.Module):
    """One path for all images: learned logits, or those of a fixed path, whose probabilities are 0 and 1.

    Args:
        logits: Shape ``(blocks,)``.
        learned: Whether they are a parameter.
    """

    def __init__(self, logits: Tensor, *, learned: bool) -> None:
        super().__init__()
        self.logits: Tensor
        if learned:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(batch, blocks)``, the same for every image."""
        # no view of a parameter: torch's FLOP counter trips over it; no len(x), which an export would take as fixed
        return self.logits.repeat(x.shape[0], 1)


class BlockDrop(TrainableModel):
    """A residual network with a policy that decides for each image which blocks run.

    In eval a block runs where its probability is .5 or more, and what is dropped is really skipped (see
    ``inference``). In training `loss` trains network and policy by phases: the network alone with all blocks; the
    policy alone, the last blocks first; both together. In every step of the two later phases the batch passes twice: on
    drawn paths, and without gradient on the paths that eval would take. The second pass gives the baseline, and from it
    alone, in the joint phase, come the running statistics of batch normalization, so that they match what runs at
    inference.

    Args:
        network: With `stem`, `blocks` and `head`; a `torch.nn.Module`.
        settings: What decides the paths, and how it learns.
        channels: Channels of an image, which the policy network reads.

    Raises:
        ValueError: ``kept_blocks`` exceeds the blocks of the network, or this has none.

    References:
        Wu, Nagarajan, Kumar, Rennie, Davis, Grauman, Feris. BlockDrop: Dynamic Inference Paths in Residual Networks.
        CVPR 2018, sections 3.2 to 3.4.

    Differs from the paper in: pretraining is a phase of the same training; blocks are skipped in batches, in training
    too, and running statistics follow the paths of inference; the bonus is the entropy of the Bernoulli draw; the
    policy's shortcuts are projections; its loss is a mean over the batch in the joint phase as well. ``static``, gates
    and the settings of the policy's size and pace are ours.
    """

    network: ResidualNetwork
    controlled: Tensor

    def __init__(self, network: ResidualNetwork, settings: BlockDropSettings, *, channels: int) -> None:
        super().__init__()
        blocks = len(network.blocks)
        if blocks < 1:
            raise ValueError("BlockDrop needs a network of 1 or more blocks, got none")
        self.network = network
        self.settings = settings
        self.phase: Phase = "joint"
        self.policy: nn.Module
        if settings.policy == "learned":
            self.policy = PolicyNetwork(channels, blocks, settings)
        elif settings.policy == "static":
            self.policy = StaticPolicy(torch.full((blocks,), settings.initial_keep).logit(), learned=True)
        else:
            path = fixed_path(settings.policy, blocks, settings.kept_blocks, seed=settings.seed)
            self.policy = StaticPolicy(torch.where(path, _CERTAIN, -_CERTAIN), learned=False)
        self.register_buffer("controlled", torch.ones(blocks, dtype=torch.bool))
        self._paths: Counter[tuple[bool, ...]] = Counter()
        self._reward = 0.0

    def probabilities(self, x: Tensor) -> Tensor:
        """Return the probability of keeping each block, shape ``(batch, blocks)``; 1 for those not under control."""
        return torch.sigmoid(self.policy(x)).masked_fill(~self.controlled, 1.0)

    def decide(self, x: Tensor) -> Tensor:
        """Return the blocks that eval keeps for each image, bool, shape ``(batch, blocks)``."""
        if self.phase == "pretrain":
            return torch.ones(len(x), len(self.controlled), dtype=torch.bool, device=x.device)
        return self._thresholded(self.policy(x))

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return logits ``(batch, classes)``: on drawn paths in training, on the decided ones in eval.

        Args:
            x: Images ``(batch, channels, height, width)``.
            generator: Of the draws, on the device of `x`; required in training unless the policy is fixed.
        """
        if not self.training:
            inference = "masked" if torch.compiler.is_exporting() else self.settings.inference
            return ROUTES[inference](self.network, x, self.decide(x), generator)
        if self.phase == "pretrain" or not self.settings.learns:
            return compacted_route(self.network, x, self.decide(x), generator)
        return self._explore(self.policy(x), x, generator_for(self, generator))[0]

    def loss(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of the phase: cross-entropy, that of the policy, or both.

        Args:
            x: Images ``(batch, channels, height, width)``.
            y: Labels ``(batch,)``.
            generator: Of the draws, on the device of `x`.
        """
        if self.phase == "pretrain" or not self.settings.learns:
            return F.cross_entropy(self(x, generator), y)
        scores = self.policy(x)
        logits, gates = self._explore(scores, x, generator)
        baseline = self._exploit(scores, x, y, generator)  # self-critical: the reward of the path that eval takes
        if self.settings.estimator != "reinforce":
            return F.cross_entropy(logits, y) + self.settings.cost_penalty * gates.mean(1).square().mean()
        advantage = rewards(gates, logits.argmax(1) == y, penalty=self.settings.penalty) - baseline
        entropy = self.settings.entropy if self.phase == "policy" else 0.0
        exploring = bounded(torch.sigmoid(scores), self.settings.alpha)
        loss = policy_loss(exploring, gates, advantage, self.controlled, entropy=entropy)
        return loss if self.phase == "policy" else loss + F.cross_entropy(logits, y)

    def prepare_epoch(self, epoch: int, epochs: int) -> None:
        """Enter the phase of an epoch: what learns, and which blocks are under control."""
        self.phase, done = phase_of(epoch, epochs, self.settings)
        blocks = len(self.controlled)
        count = {"pretrain": 0, "joint": blocks}.get(
            self.phase, controlled_blocks(done, blocks, per_epoch=self.settings.blocks_per_epoch)
        )
        self.controlled.copy_(torch.arange(blocks) >= blocks - count)
        # `get_submodule`: the attribute is typed as what the routes drive, not as a module
        self.get_submodule("network").requires_grad_(self.phase != "policy")
        self.train(self.training)  # a network that is frozen from now on goes to eval mode, see `train`
        self._paths.clear()
        self._reward = 0.0

    def train(self, mode: bool = True) -> "BlockDrop":
        """Set the mode; a frozen network stays in eval."""
        super().train(mode)
        if self.phase == "policy":
            self.get_submodule("network").eval()
        return self

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the network's parameters, then the policy's, which have their own learning rate and do not decay."""
        policy, multiplier = list(self.policy.parameters()), self.settings.policy_lr_multiplier
        return [
            *plain_groups(self.get_submodule("network")),
            {"params": policy, "lr_multiplier": multiplier, "weight_decay": False},
        ]

    def telemetry(self) -> dict[str, TelemetryValue]:
        """Return what eval's policy did on the training images of the epoch: blocks, share by block, paths, reward."""
        record: dict[str, TelemetryValue] = {"blockdrop/controlled": float(self.controlled.sum())}
        if not self._paths:
            return record
        keep, counts = torch.tensor(list(self._paths)), torch.tensor(list(self._paths.values()))
        statistics = path_statistics(keep.repeat_interleave(counts, 0))
        return record | {
            "blockdrop/blocks/mean": statistics.mean,
            "blockdrop/blocks/sd": statistics.sd,
            "blockdrop/blocks/kept": (counts.double() @ keep.double() / counts.sum()).tolist(),
            "blockdrop/paths": float(statistics.distinct),
            "blockdrop/reward": self._reward / int(counts.sum()),
        }

    @torch.no_grad()
    def flops(self, image: Tensor) -> BlockFlops:
        """Count what policy, blocks and the rest cost; the mode is left as it was.

        Args:
            image: One image, shape ``(1, channels, height, width)``.
        """
        was_training = self.training
        self.eval()
        counted = block_flops(self.network, self.policy, image)
        self.train(was_training)
        return counted

    def _thresholded(self, scores: Tensor) -> Tensor:
        return torch.logical_or(scores >= 0, ~self.controlled)  # an exported program may not hold `__or__`

    def _explore(self, scores: Tensor, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the logits on drawn paths, and these: bool, or gates with gradient."""
        settings = self.settings
        if settings.estimator == "reinforce":
            exploring = bounded(torch.sigmoid(scores.detach()), settings.alpha)
            keep = torch.bernoulli(exploring, generator=generator).bool() | ~self.controlled
            with statistics_kept(self.get_submodule("network")), torch.set_grad_enabled(self.phase != "policy"):
                return compacted_route(self.network, x, keep, generator), keep
        if settings.estimator == "gumbel":
            gates = gumbel_gates(scores, generator, temperature=settings.temperature)
        else:
            gates = straight_through_gates(scores)
        gates = gates.masked_fill(~self.controlled, 1.0)
        with statistics_kept(self.get_submodule("network")):
            return masked_route(self.network, x, gates, generator), gates

    @torch.no_grad()
    def _exploit(self, scores: Tensor, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Return the reward of the paths that eval would take, shape ``(batch,)``, and record these paths."""
        keep = self._thresholded(scores)
        right = compacted_route(self.network, x, keep, generator).argmax(1) == y
        reward = rewards(keep, right, penalty=self.settings.penalty)
        self._paths.update(tuple(path) for path in keep.tolist())
        self._reward += float(reward.sum())
        return reward
