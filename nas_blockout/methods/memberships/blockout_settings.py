"""Settings of Blockout and its presets."""

from dataclasses import dataclass
from typing import Annotated, Literal

from nas_blockout.methods.random_masks import Estimator
from nas_blockout.networks import LAST
from nas_blockout.settings_fields import Conflict, Length, Pattern, Range, check

Mode = Literal["hard-learned", "hard-fixed", "soft-learned"]
Masked = (
    Literal["head", "all"]
    | Annotated[str, Pattern(LAST.pattern, "last N", "last 2")]
    | Annotated[tuple[str, ...], Length(1)]
)
MaskValues = Literal["share", "binary"]
StartAt = Literal["probabilities", "cost_target"]
PenaltySides = Literal["above", "both"]


@dataclass(frozen=True, slots=True)
class BlockoutSettings:
    """Settings of Blockout. The defaults are the preset ``compress``, the best recipe found for compression.

    Args:
        clusters: Number of clusters k, at most the nodes of the narrowest masked layer.
        mode: ``hard-learned`` draws C and learns P, ``hard-fixed`` draws C from a fixed P, ``soft-learned`` uses P for
            C.
        masked: Layers whose weights are masked: ``head`` for every linear layer, the classifier included; ``all`` for
            the convolutions' channels as well; ``last N`` for the last N layers, such as the ``last 2`` of the paper;
            or a list of layers, such as ``[hidden, classes]``, each named by the nodes that its weights end in. The
            nodes that a masked layer reads have memberships as well.
        mask_values: ``share`` scales a weight by the share of clusters that its nodes have in common, as in the paper;
            ``binary`` keeps it whole where they share one or more, which leaves pretrained weights what they are.
        estimator: Gradient estimator for P: ``masked`` (eq. 9, biased), ``straight-through``, or ``arm`` (unbiased;
            each step then costs two forward passes).
        first_probability: Initial P of the first masked layer.
        last_probability: Initial P of the classes; layers between are interpolated.
        logit_noise: Standard deviation of the noise on the initial logits of P.
        magnitude_spread: Standard deviation of the initial logits of P over the nodes of a layer, which then are as far
            apart as the logarithms of the magnitudes by which pruning ranks them; 0 for P without regard to weights.
        start_at: Level of the initial P: that of the given ``probabilities``, or ``cost_target``, for which the logits
            of all layers but the classes are moved alike until P expects this share of the dense MACs.
        structure_lr_multiplier: Learning rate of the structure as a multiple of that of the weights.
        rescale: Whether to divide the initial weights by their mean mask, so that pre-activations start as in a plain
            layer.
        cost_penalty: Weight of the penalty on expected MACs beyond `cost_target`; 0 turns it off.
        cost_target: Share of the dense MACs that is not penalized.
        cost_penalty_sides: ``above`` penalizes expected MACs above the target, ``both`` also those below it, so that
            polarization cannot push the cost past the target.
        cost_warmup: Share of the epochs over which the penalty, the polarization and the disjointness rise linearly.
        polarization: Weight of the mean of ``P (1 - P)``; pushes probabilities toward 0 or 1.
        balance: Weight of the variance over clusters of their mean membership; keeps the use of clusters balanced.
        disjointness: Weight of the share of pairs of clusters to which a node belongs, which makes branches of wide
            layers share fewer nodes.
        depth_exponent: Power of the depth, 0 at the first masked layer and 1 at the classes, by which initial P goes
            from `first_probability` to `last_probability` and by which `disjointness` sets in: 1 is linear, larger
            values leave early layers shared by all branches.
    """

    clusters: Annotated[int, Range(ge=1)] = 4
    mode: Mode = "hard-learned"
    masked: Masked = "all"
    mask_values: MaskValues = "share"
    estimator: Estimator = "masked"
    first_probability: Annotated[float, Range(gt=0, lt=1)] = 0.9
    last_probability: Annotated[float, Range(gt=0, lt=1)] = 0.98
    logit_noise: Annotated[float, Range(ge=0)] = 0.3
    magnitude_spread: Annotated[float, Range(ge=0)] = 0.0
    start_at: StartAt = "probabilities"
    structure_lr_multiplier: Annotated[float, Range(ge=0)] = 60.0
    rescale: bool = True
    cost_penalty: Annotated[float, Range(ge=0)] = 16.0
    cost_target: Annotated[float, Range(ge=0, le=1)] = 0.5
    cost_penalty_sides: PenaltySides = "both"
    cost_warmup: Annotated[float, Range(ge=0, le=1)] = 0.3
    polarization: Annotated[float, Range(ge=0)] = 2.0
    balance: Annotated[float, Range(ge=0)] = 0.0
    disjointness: Annotated[float, Range(ge=0)] = 0.0
    depth_exponent: Annotated[float, Range(gt=0)] = 1.0

    def __post_init__(self) -> None:
        check(self)
        if self.estimator != "masked" and self.mode != "hard-learned":
            message = f"estimator={self.estimator!r} needs mode='hard-learned', got mode={self.mode!r}"
            raise Conflict(message, "estimator", "mode")


PAPER = BlockoutSettings(
    masked="head",
    first_probability=0.5,
    last_probability=0.5,
    logit_noise=0.0,
    structure_lr_multiplier=1.0,
    cost_penalty=0.0,
    cost_penalty_sides="above",
    cost_warmup=0.5,
    polarization=0.0,
)
"""Settings of the paper, the preset ``paper``; its networks have no terms of the loss beside the labels."""

PRETRAINED = BlockoutSettings(
    clusters=2,
    mask_values="binary",
    estimator="straight-through",
    rescale=False,
    last_probability=0.99,
    logit_noise=1.0,
    magnitude_spread=10.0,
    start_at="cost_target",
    structure_lr_multiplier=100.0,
    cost_penalty=2.0,
    cost_warmup=0.0,
    polarization=1.0,
)
"""Settings for networks that come with weights, the preset ``pretrained``: P starts at what magnitudes would prune."""

BRANCH = BlockoutSettings(first_probability=0.95, last_probability=0.5, depth_exponent=3.0, disjointness=3.0)
"""Settings that divide the late layers of a network, the preset ``branch``: its trunk is shared, its head branches."""
