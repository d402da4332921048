"""What all experiments of two stages have in common: the first learns a structure, the second trains its branches."""

from dataclasses import dataclass
from typing import Literal, get_args

LearnSchedule = Literal["same", "cosine", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoStageSettings:
    """How the epochs of an experiment are divided between two networks.

    Args:
        learn_fraction: Share of the epochs spent on the first network, in 0..1 exclusive; the rest trains the second.
        learn_schedule: Learning rate of the first stage: ``constant``, so that it falls only once, in the second; or
            ``same`` as of the whole training (a cosine then falls to zero twice), or ``cosine``, whatever that is.
        finetune_lr_multiplier: Peak learning rate of the second stage as a multiple of the experiment's, above 0.
        soft_target_weight: Weight of the soft outputs of the first network in the loss of the second, in [0, 1]; 0 for
            labels alone. The teacher's forward passes are no sample passes, but take their seconds and are counted in
            ``teacher_passes``.
        temperature: Of the soft outputs, above 0.
    """

    learn_fraction: float = 0.5
    learn_schedule: LearnSchedule = "constant"
    finetune_lr_multiplier: float = 1.0
    soft_target_weight: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.learn_fraction < 1:
            raise ValueError(f"learn_fraction must lie between 0 and 1, got learn_fraction={self.learn_fraction}")
        if self.learn_schedule not in get_args(LearnSchedule):
            raise ValueError(
                f"learn_schedule must be one of {', '.join(get_args(LearnSchedule))}, got {self.learn_schedule!r}"
            )
        if not self.finetune_lr_multiplier > 0:
            raise ValueError(f"finetune_lr_multiplier must be above 0, got {self.finetune_lr_multiplier}")
        if not (0 <= self.soft_target_weight <= 1 and self.temperature > 0):
            raise ValueError(
                f"soft_target_weight must lie in 0..1 and temperature be above 0, got {self.soft_target_weight} and "
                f"{self.temperature}"
            )
