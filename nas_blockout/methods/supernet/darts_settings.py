"""Settings of differentiable search over fixed hierarchies."""

from dataclasses import dataclass
from typing import Annotated, Literal

from nas_blockout.settings_fields import Conflict, Length, Range, check

Relaxation = Literal["softmax", "gumbel"]
Widths = Annotated[tuple[Annotated[float, Range(gt=0, le=1)], ...], Length(1)]


@dataclass(frozen=True, slots=True)
class DartsSettings:
    """Settings of differentiable search over fixed hierarchies.

    Args:
        branches: Number of branches, at most the classes and the nodes of the narrowest layer that branches.
        split_layers: Number of layers that branch, counted backward from the one before the classes; where several
            layers are as far from the classes, they count as one. The layers before are shared by all branches.
        shared: Share of the nodes of every layer that branches that belong to all branches.
        widths: Choices for the width of a layer or of a branch in it, as shares of its nodes, rising to 1. A smaller
            choice has the first of the nodes of a larger one.
        relaxation: ``softmax`` weights all choices in every step, as in DARTS; ``gumbel`` adds Gumbel noise to the
            logits in training, so that each step weights one choice most.
        temperature: Of the softmax in the first epoch.
        final_temperature: Of the softmax in the last epoch; it changes by the same factor from epoch to epoch.
        weight_steps: Steps of the weights for each step of the architecture parameters, which read other images. So one
            in ``weight_steps + 1`` of the training images is held for the architecture parameters.
        structure_lr_multiplier: Learning rate of the architecture parameters as a multiple of that of the weights.
        cost_penalty: Weight of the penalty on expected MACs beyond `cost_target`; 0 turns it off.
        cost_target: Share of the dense MACs that is not penalized.
        cost_penalty_sides: ``above`` penalizes expected MACs above the target, ``both`` also those below it.
        cost_warmup: Share of the epochs over which the penalty rises linearly.
    """

    branches: Annotated[int, Range(ge=2)] = 3
    split_layers: Annotated[int, Range(ge=1)] = 1
    shared: Annotated[float, Range(ge=0, lt=1)] = 0.0
    widths: Widths = (0.25, 0.5, 0.75, 1.0)
    relaxation: Relaxation = "softmax"
    temperature: Annotated[float, Range(gt=0)] = 1.0
    final_temperature: Annotated[float, Range(gt=0)] = 0.2
    weight_steps: Annotated[int, Range(ge=1)] = 1
    structure_lr_multiplier: Annotated[float, Range(ge=0)] = 30.0
    cost_penalty: Annotated[float, Range(ge=0)] = 16.0
    cost_target: Annotated[float, Range(ge=0, le=1)] = 0.5
    cost_penalty_sides: Literal["above", "both"] = "both"
    cost_warmup: Annotated[float, Range(ge=0, le=1)] = 0.3

    def __post_init__(self) -> None:
        check(self)
        if list(self.widths) != sorted(set(self.widths)) or self.widths[-1] != 1:
            raise Conflict(f"widths must rise to 1, each once, got {list(self.widths)}", "widths")
