"""BlockDrop: a small policy network decides from the image, in one pass, which residual blocks of a network to run."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from nas_blockout.methods.paths.block_routes import (
    ROUTES,
    Inference,
    ResidualNetwork,
    compacted_route,
    masked_route,
    norms_of,
    static_route,
    statistics_kept,
    training_route,
)
from nas_blockout.methods.paths.block_routing import (
    BlockFlops,
    FixedPolicy,
    PolicyNetwork,
    StaticPolicy,
    block_flops,
    fixed_path,
    network_flops,
    operations,
    path_of_cost,
    policy_size,
)
from nas_blockout.methods.paths.gates import gumbel_gates, straight_through_gates
from nas_blockout.methods.paths.path_record import PathRecord
from nas_blockout.methods.random_masks import generator_for
from nas_blockout.randomness.batch_shards import rows_count, uniform_rows
from nas_blockout.randomness.draws import Randomness
from nas_blockout.settings_fields import SEED, SOME_LAYERS, Conflict, Range, check, refuse
from nas_blockout.training_protocol import ParameterGroup, TelemetryValue, TrainableModel, plain_groups

Policy = Literal["learned", "static", "all", "first", "random", "spread"]
Estimator = Literal["reinforce", "straight-through", "gumbel"]
Phase = Literal["pretrain", "policy", "joint"]
FinetunePaths = Literal["inference", "sampled"]

POLICY_SHARE = 0.05  # of the operations of the network that it steers: the most that the default policy network costs
_TIE = 1e-3  # how far initial logits lie apart that are compared with each other
_LEAST_LOG = -100.0
_CERTAIN = 1e4  # a logit whose probability is 1; finite, as exported weights must be


@dataclass(frozen=True, slots=True)
class BlockDropSettings:
    """Settings of BlockDrop. The defaults are the preset ``short``, for trainings of tens of epochs.

    Args:
        policy: ``learned`` depends on the image, ``static`` learns one path for all images; the baselines keep ``all``
            blocks, the ``first`` ones, a ``random`` selection, or blocks ``spread`` evenly.
        kept_blocks: Blocks that ``first``, ``random`` and ``spread`` keep; None for half of them, unless `target_macs`
            or the ``match`` of a study's arm says how many.
        target_macs: Multiply-accumulates an image that ``static``, ``first``, ``random`` and ``spread`` come near to,
            by whole blocks: matches their cost to that of a learned policy.
        estimator: How the policy learns: ``reinforce`` (the paper's), or ``straight-through`` or ``gumbel`` gates.
        alpha: Paths are drawn from probabilities in ``[1 - alpha, alpha]``.
        penalty: gamma; the reward of a wrong prediction is ``-penalty``.
        entropy: Weight of the entropy bonus while only the policy learns.
        cost_penalty: Weight of the mean squared share of blocks in the loss of gates.
        temperature: Temperature of ``gumbel`` gates.
        pretrain_fraction: Share of the epochs that train the network with all blocks; 0 if it is already trained.
        policy_fraction: Share of the epochs that train the policy alone, with the network frozen; 0 for none.
        blocks_per_epoch: Blocks, starting from the last, that the policy takes control of in each of these epochs; None
            for as many as it takes to control all of them in the last one.
        finetune_paths: Paths on which ``reinforce`` trains the network together with the policy: those that
            ``inference`` will take, or those that are ``sampled`` for the policy (the paper's).
        policy_widths: Channels of the stages of the policy network, one block each; None for what suits its backbone.
        policy_pool: Side of the mean pooling of the policy's input, 1 for none; None for what suits its backbone.
        policy_lr_multiplier: Learning rate of the policy as a multiple of the network's.
        initial_keep: Approximate initial probability of keeping a block.
        inference: How eval skips blocks: ``compacted`` runs each block on the images that keep it, ``grouped`` runs the
            images of equal paths together, ``masked`` runs all blocks and saves no time.
        seed: Seed of the path of ``random``; None for that of the experiment.
    """

    policy: Policy = "learned"
    kept_blocks: Annotated[int, Range(ge=1)] | None = None
    target_macs: Annotated[int, Range(ge=1)] | None = None
    estimator: Estimator = "reinforce"
    alpha: Annotated[float, Range(gt=0.5, lt=1)] = 0.8
    penalty: Annotated[float, Range(ge=0)] = 1.0
    entropy: Annotated[float, Range(ge=0)] = 0.1
    cost_penalty: Annotated[float, Range(ge=0)] = 1.0
    temperature: Annotated[float, Range(gt=0)] = 1.0
    pretrain_fraction: Annotated[float, Range(ge=0, le=1)] = 0.5
    policy_fraction: Annotated[float, Range(ge=0, le=1)] = 0.25
    blocks_per_epoch: Annotated[int, Range(ge=1)] | None = None
    finetune_paths: FinetunePaths = "inference"
    policy_widths: Annotated[tuple[Annotated[int, Range(ge=1)], ...], SOME_LAYERS] | None = None
    policy_pool: Annotated[int, Range(ge=1)] | None = None
    policy_lr_multiplier: Annotated[float, Range(gt=0)] = 1.0
    initial_keep: Annotated[float, Range(gt=0, lt=1)] = 0.5
    inference: Inference = "compacted"
    seed: Annotated[int, SEED] | None = None

    def __post_init__(self) -> None:
        check(self)
        refuse(self._conflicts())

    def _conflicts(self) -> Iterator[Conflict]:
        if self.kept_blocks is not None and not self.chooses_cost:
            message = (
                f"kept_blocks belongs to the policies first, random and spread, and to no other, "
                f"got kept_blocks={self.kept_blocks} for policy={self.policy!r}"
            )
            yield Conflict(message, "kept_blocks", "policy")
        if self.target_macs is not None and not (self.chooses_cost or self.policy == "static"):
            message = (
                f"target_macs belongs to the policies static, first, random and spread, and to no other, "
                f"got target_macs={self.target_macs} for policy={self.policy!r}"
            )
            yield Conflict(message, "target_macs", "policy")
        if self.target_macs is not None and self.kept_blocks is not None:
            message = (
                f"kept_blocks and target_macs both say what is kept: set one of them, "
                f"got kept_blocks={self.kept_blocks} and target_macs={self.target_macs}"
            )
            yield Conflict(message, "kept_blocks", "target_macs")
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

    @property
    def chooses_cost(self) -> bool:
        """Whether the policy is a fixed one that keeps as much as it is told to."""
        return self.policy in ("first", "random", "spread")


# One block more an epoch, however many there are; all paths of the joint phase sampled; a policy of one size.
PAPER = BlockDropSettings(
    blocks_per_epoch=1, finetune_paths="sampled", policy_widths=(16, 32, 64), policy_pool=1, seed=0
)


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
    # Bounded as in `torch.nn.functional.binary_cross_entropy`, which autocast refuses and which fails for NaN.
    log_probability = torch.where(keep, probabilities, 1 - probabilities).log().clamp_min(_LEAST_LOG)
    uncertainty = torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)
    terms = advantage.detach().unsqueeze(1) * log_probability + entropy * uncertainty
    loss: Tensor = -(terms * controlled).sum(1).mean()
    return loss


def controlled_blocks(epoch: int, blocks: int, *, epochs: int, per_epoch: int | None = None) -> int:
    """Return how many blocks, from the last on, are under control in an epoch of the curriculum.

    Args:
        epoch: Number of the epoch, from 0.
        blocks: Blocks of the network.
        epochs: Epochs of the curriculum; in the last one all blocks are under control.
        per_epoch: Blocks to add in each epoch whatever its length; None to spread them evenly over the epochs.
    """
    return min(blocks, math.ceil(blocks * (epoch + 1) / epochs) if per_epoch is None else per_epoch * (epoch + 1))


def phase_of(epoch: int, epochs: int, settings: BlockDropSettings) -> tuple[Phase, int]:
    """Return the phase that an epoch belongs to and the number of the epoch inside it, from 0.

    A policy that learns nothing has no phase of its own: its epochs are epochs of fine-tuning, so that controls are
    trained as long.
    """
    pretrain, joint = _phase_starts(epochs, settings)
    if epoch < pretrain:
        return "pretrain", epoch
    return ("policy", epoch - pretrain) if epoch < joint else ("joint", epoch - joint)


def curriculum_epochs(epochs: int, settings: BlockDropSettings) -> int:
    """Return for how many epochs of a training the policy learns alone."""
    pretrain, joint = _phase_starts(epochs, settings)
    return joint - pretrain


def _phase_starts(epochs: int, settings: BlockDropSettings) -> tuple[int, int]:
    """Return the first epoch of the policy's phase and that of the joint one."""
    pretrain = round(settings.pretrain_fraction * epochs)
    if not settings.learns:
        return pretrain, pretrain
    return pretrain, min(epochs, round((settings.pretrain_fraction + settings.policy_fraction) * epochs))


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
        shape: Channels, height and width of an image.

    Raises:
        ValueError: ``kept_blocks`` exceeds the blocks of the network, this has none, or ``target_macs`` does not
            pay for one block.

    References:
        Wu, Nagarajan, Kumar, Rennie, Davis, Grauman, Feris. BlockDrop: Dynamic Inference Paths in Residual Networks.
        CVPR 2018, sections 3.2 to 3.4.

    Differs from the paper in: pretraining is a phase of the same training; blocks are skipped in batches, in training
    too, and running statistics follow the paths of inference, as does the network's own loss unless ``finetune_paths``
    says otherwise; the curriculum is scaled to its phase; the bonus is the entropy of the Bernoulli draw; the policy's
    shortcuts are projections and its size follows its backbone; its loss is a mean over the batch in the joint phase as
    well. ``static``, gates and costs to come near to are ours.
    """

    network: ResidualNetwork
    controlled: Tensor
    policy_share: float  # what the policy costs as a share of the network with all blocks

    def __init__(self, network: ResidualNetwork, settings: BlockDropSettings, *, shape: tuple[int, int, int]) -> None:
        super().__init__()
        blocks = len(network.blocks)
        if blocks < 1:
            raise ValueError("BlockDrop needs a network of 1 or more blocks, got none")
        self.network = network
        self.settings = settings
        self.phase: Phase = "joint"
        counted = network_flops(network, shape)
        self.policy = _policy(counted, settings, shape)
        self.policy_share = operations(self.policy, shape) / counted.full if settings.policy == "learned" else 0.0
        self._norms = norms_of(network)
        self.register_buffer("controlled", torch.ones(blocks, dtype=torch.bool))
        self._path: tuple[bool, ...] | None = None  # of all images, where it is known before an epoch
        self._taken: tuple[Tensor, Tensor] | None = None
        self._record = PathRecord()  # of the epoch

    def probabilities(self, x: Tensor) -> Tensor:
        """Return the probability of keeping each block, shape ``(batch, blocks)``; 1 for those not under control."""
        return torch.sigmoid(self._scores(x)).masked_fill(~self.controlled, 1.0)

    def decide(self, x: Tensor) -> Tensor:
        """Return the blocks that eval keeps for each image, bool, shape ``(batch, blocks)``."""
        if self.phase == "pretrain":
            return torch.ones(len(x), len(self.controlled), dtype=torch.bool, device=x.device)
        return self._thresholded(self._scores(x))

    def forward(self, x: Tensor, generator: Randomness | None = None) -> Tensor:
        """Return logits ``(batch, classes)``: on drawn paths in training, on the decided ones in eval.

        Args:
            x: Images ``(batch, channels, height, width)``.
            generator: Of the draws, on the device of `x`; required in training unless the policy is fixed.
        """
        if not self.training:
            if any(norm.training for norm in self._norms):  # their statistics are being estimated anew
                return compacted_route(self.network, x, self.decide(x), generator, estimating=True)
            inference = "masked" if torch.compiler.is_exporting() else self.settings.inference
            return ROUTES[inference](self.network, x, self.decide(x), generator)
        if self.phase == "pretrain" or not self.settings.learns:
            if self._path is None:  # trained without a loop that prepares its epochs
                return training_route(self.network, x, self.decide(x), generator)
            return static_route(self.network, x, self._path, generator)
        return self._explore(self._scores(x), x, generator_for(self, generator))[0]

    def loss(self, x: Tensor, y: Tensor, generator: Randomness) -> Tensor:
        """Return the loss of the phase: the criterion, the loss of the policy, or both.

        Args:
            x: Images ``(batch, channels, height, width)``.
            y: Labels ``(batch,)``: what earns the reward is the right class.
            generator: Of the draws, on the device of `x`.
        """
        if self.phase == "pretrain" or not self.settings.learns:
            return self.criterion(self(x, generator), y)
        scores = self._scores(x)
        logits, gates = self._explore(scores, x, generator)
        exploited, baseline = self._exploit(scores, x, y, generator)  # self-critical: what the path of eval earns
        if self.settings.estimator != "reinforce":
            return self.criterion(logits, y) + self.settings.cost_penalty * gates.mean(1).square().mean()
        advantage = rewards(gates, logits.argmax(1) == y, penalty=self.settings.penalty) - baseline
        entropy = self.settings.entropy if self.phase == "policy" else 0.0
        exploring = bounded(torch.sigmoid(scores), self.settings.alpha)
        loss = policy_loss(exploring, gates, advantage, self.controlled, entropy=entropy)
        if self.phase == "policy":
            return loss
        return loss + self.criterion(exploited if self._trains_exploited else logits, y)

    def prepare_epoch(self, epoch: int, epochs: int) -> None:
        """Enter the phase of an epoch: what learns, and which blocks are under control."""
        self.phase, done = phase_of(epoch, epochs, self.settings)
        blocks = len(self.controlled)
        count = 0 if self.phase == "pretrain" else blocks
        if self.phase == "policy":
            length, pace = curriculum_epochs(epochs, self.settings), self.settings.blocks_per_epoch
            count = controlled_blocks(done, blocks, epochs=length, per_epoch=pace)
        self.controlled.copy_(torch.arange(blocks) >= blocks - count)
        # `get_submodule`: the attribute is typed as what the routes drive, not as a module
        self.get_submodule("network").requires_grad_(self.phase != "policy")
        self.train(self.training)  # a network that is frozen from now on goes to eval mode, see `train`
        self._path = None
        if self.phase == "pretrain":
            self._path = (True,) * blocks
        elif isinstance(self.policy, StaticPolicy) and not self.settings.learns:
            self._path = tuple(self._thresholded(self.policy.logits).tolist())
        self._record = PathRecord()

    def after_batch(self) -> None:
        """Keep what the last batch did on the paths of inference, for `telemetry`; nothing is read."""
        if self._taken is not None:
            self._record.add(self._taken)
            self._taken = None

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

    def epoch_state(self) -> list[tuple[Tensor, Tensor]]:
        """Return the paths of the training images so far and their rewards."""
        return self._record.state()

    def load_epoch_state(self, states: Sequence[Any]) -> None:
        """Take over the paths of the training images so far and their rewards."""
        self._record.load(states, self.controlled.device)

    def gather_counts(self, gather: Callable[[Any], list[Any]]) -> None:
        """Gather the paths of the training images and their rewards."""
        self._record.load(gather([(keep.cpu(), reward.cpu()) for keep, reward in self._record.state()]))

    def telemetry(self) -> dict[str, TelemetryValue]:
        """Return what eval's policy did on the training images of the epoch: blocks, share by block, paths, reward."""
        record: dict[str, TelemetryValue] = {"blockdrop/controlled": float(self.controlled.sum())}
        if self.policy_share:
            record["blockdrop/policy_share"] = self.policy_share
        return record | self._record.telemetry()

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

    def _scores(self, x: Tensor) -> Tensor:
        """Return the logits of the policy, in single precision where it computes in half."""
        scores: Tensor = self.policy(x)
        return scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores

    def _thresholded(self, scores: Tensor) -> Tensor:
        return torch.logical_or(scores >= 0, ~self.controlled)  # an exported program may not hold `__or__`

    @property
    def _trains_exploited(self) -> bool:
        """Whether the network learns on the paths of inference rather than on sampled ones."""
        settings = self.settings
        return self.phase == "joint" and settings.estimator == "reinforce" and settings.finetune_paths == "inference"

    def _explore(self, scores: Tensor, x: Tensor, generator: Randomness) -> tuple[Tensor, Tensor]:
        """Return the logits on drawn paths, and these: bool, or gates with gradient."""
        settings = self.settings
        if settings.estimator == "reinforce":
            exploring = bounded(torch.sigmoid(scores.detach()), settings.alpha)
            keep = (uniform_rows(exploring, generator) < exploring) | ~self.controlled
            learns = self.phase != "policy" and not self._trains_exploited
            with statistics_kept(self.get_submodule("network")), torch.set_grad_enabled(learns):
                return training_route(self.network, x, keep, generator), keep
        if settings.estimator == "gumbel":
            gates = gumbel_gates(scores, generator, temperature=settings.temperature)
        else:
            gates = straight_through_gates(scores)
        gates = gates.masked_fill(~self.controlled, 1.0)
        with statistics_kept(self.get_submodule("network")):
            return masked_route(self.network, x, gates, generator), gates

    def _exploit(self, scores: Tensor, x: Tensor, y: Tensor, generator: Randomness) -> tuple[Tensor, Tensor]:
        """Return the logits on the paths that eval would take and their reward, ``(batch,)``; record these paths."""
        keep = self._thresholded(scores)
        with torch.set_grad_enabled(self._trains_exploited):
            logits = training_route(self.network, x, keep, generator)
        reward = rewards(keep, logits.argmax(1) == y, penalty=self.settings.penalty)
        if rows_count(generator):
            self._taken = keep, reward.detach()
        if not torch.compiler.is_compiling():  # of a compiled step, the training loop tells
            self.after_batch()
        return logits, reward


def _policy(counted: BlockFlops, settings: BlockDropSettings, shape: tuple[int, int, int]) -> nn.Module:
    """Return what decides the paths of a network.

    Args:
        counted: What the network costs.
        settings: Of BlockDrop.
        shape: Channels, height and width of an image.
    """
    blocks = len(counted.blocks)
    budget = _budget(counted, settings)
    if settings.policy == "learned":
        given = settings.policy_widths, settings.policy_pool
        widths, pool = policy_size(given, shape, blocks, most=POLICY_SHARE * counted.full)
        return PolicyNetwork(shape[0], blocks, widths=widths, pool=pool, initial_keep=settings.initial_keep)
    if settings.policy == "static":
        logits = torch.full((blocks,), settings.initial_keep).logit()
        if budget is not None:  # which blocks are kept before any has shown its worth: evenly spread ones
            logits -= _TIE * torch.tensor([int(f"{number:016b}"[::-1], 2) / 2**16 for number in range(blocks)])
        return StaticPolicy(logits, learned=True, costs=counted.blocks, budget=budget)
    fixed: FixedPolicy = settings.policy
    seed = settings.seed or 0
    if budget is None:
        kept = -(-blocks // 2) if settings.kept_blocks is None else settings.kept_blocks
        path = fixed_path(fixed, blocks, None if fixed == "all" else kept, seed=seed)
    else:
        path = path_of_cost(fixed, counted.blocks, budget, seed=seed)
    return StaticPolicy(torch.where(path, _CERTAIN, -_CERTAIN), learned=False)


def _budget(counted: BlockFlops, settings: BlockDropSettings) -> float | None:
    """Return how many operations the kept blocks may have together, None for any number."""
    if settings.target_macs is None:
        return None
    least = counted.fixed + min(counted.blocks)
    if 2 * settings.target_macs < least:
        raise ValueError(
            f"target_macs must be at least {-(-least // 2)}, the multiply-accumulates of the network with one block, "
            f"got target_macs={settings.target_macs}"
        )
    return 2.0 * settings.target_macs - counted.fixed
