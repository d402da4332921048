"""Settings of all experiments with two stages: the first learns a structure, the second trains the derived network."""

from dataclasses import dataclass
from typing import Annotated, Literal

from nas_blockout.settings_fields import Range, check

LearnSchedule = Literal["same", "cosine", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoStageSettings:
    """Division of an experiment into two stages.

    Args:
        learn_fraction: Share of the epochs for the first stage; the rest is for the second.
        learn_schedule: Learning-rate schedule of the first stage: ``constant``, so that the rate decays only once, in
            the second stage; ``same`` as the training's (a cosine then decays to zero twice); or ``cosine``.
        finetune_lr_multiplier: Peak learning rate of the second stage as a multiple of the training's.
        soft_target_weight: Weight of the soft outputs of the first network in the loss of the second; 0 for
            labels alone. The teacher's forward passes are not counted as sample passes, but in ``teacher_passes`` and
            in the measured seconds.
        temperature: Temperature of the soft outputs.
    """

    learn_fraction: Annotated[float, Range(gt=0, lt=1)] = 0.5
    learn_schedule: LearnSchedule = "constant"
    finetune_lr_multiplier: Annotated[float, Range(gt=0)] = 1.0
    soft_target_weight: Annotated[float, Range(ge=0, le=1)] = 0.0
    temperature: Annotated[float, Range(gt=0)] = 2.0

    def __post_init__(self) -> None:
        check(self)
