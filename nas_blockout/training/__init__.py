"""Training: settings, the loop, its records and checkpoints, evaluation."""

from nas_blockout.training.epoch_records import (
    Batches,
    Checkpoint,
    EpochProgress,
    EpochRecord,
    Evaluation,
    Loaders,
    Saving,
)
from nas_blockout.training.evaluation import evaluate, keeping_logits
from nas_blockout.training.losses import CHOICES, LOSSES, Loss
from nas_blockout.training.optimizers import unmatched
from nas_blockout.training.precision import precision_note
from nas_blockout.training.rank_errors import RankFailedError, RanksEndedError
from nas_blockout.training.ranks import ALONE, RankGroup, Ranks, indivisible
from nas_blockout.training.recipes.criterion import resolved
from nas_blockout.training.training_loop import CALIBRATION_IMAGES, fit
from nas_blockout.training.training_settings import NORMS_AND_BIASES, TrainingSettings, sample_passes

__all__ = [
    "ALONE",
    "CALIBRATION_IMAGES",
    "CHOICES",
    "LOSSES",
    "NORMS_AND_BIASES",
    "Batches",
    "Checkpoint",
    "EpochProgress",
    "EpochRecord",
    "Evaluation",
    "Loaders",
    "Loss",
    "RankFailedError",
    "RankGroup",
    "Ranks",
    "RanksEndedError",
    "Saving",
    "TrainingSettings",
    "evaluate",
    "fit",
    "indivisible",
    "keeping_logits",
    "precision_note",
    "resolved",
    "sample_passes",
    "unmatched",
]
