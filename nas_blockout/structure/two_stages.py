"""What all experiments of two stages have in common: the first learns a structure, the second trains its branches."""

from dataclasses import dataclass
from typing import Literal, get_args

LearnSchedule = Literal["same", "cosine", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoStageSettings:
    """How the epochs of an experiment are divided between two networks.

    Args:
        learn_share: Share of the epochs spent on the first network, in 0..1 exclusive; the rest trains the second.
        learn_schedule: Learning rate of the first stage: ``constant``, so that it falls only once, in the second; or
            ``same`` as of the whole training (a cosine then falls to zero twice), or ``cosine``, whatever that is.
        learning_rate_scale: Peak learning rate of the second stage as a multiple of the experiment's, above 0.
        soft_targets: Weight of the soft outputs of the first network in the loss of the second, in 0..1; 0 for labels
            alone. The teacher's forward passes are no sample passes, but take their seconds and are counted in
            ``teacher_passes``.
        temperature: Of the soft outputs, above 0.
    """

    learn_share: float = 0.5
    learn_schedule: LearnSchedule = "constant"
    learning_rate_scale: float = 1.0
    soft_targets: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.learn_share < 1:
            raise ValueError(f"learn_share must lie between 0 and 1, got learn_share={self.learn_share}")
        if self.learn_schedule not in get_args(LearnSchedule):
            raise ValueError(
                f"learn_schedule must be one of {', '.join(get_args(LearnSchedule))}, got {self.learn_schedule!r}"
            )
        if not self.learning_rate_scale > 0:
            raise ValueError(f"learning_rate_scale must be above 0, got {self.learning_rate_scale}")
        if not (0 <= self.soft_targets <= 1 and self.temperature > 0):
            raise ValueError(
                f"soft_targets must lie in 0..1 and temperature be above 0, got {self.soft_targets} and "
                f"{self.temperature}"
            )
