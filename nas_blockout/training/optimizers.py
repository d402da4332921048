"""The optimizer of a training, and the learning rate of each of its steps."""

import math

import torch

from nas_blockout.training.training_settings import TrainingSettings
from nas_blockout.training_protocol import TrainableModel


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: TrainingSettings, done_epochs: float) -> None:
    """Set the rate of every parameter group for the next step.

    Args:
        optimizer: Made by `make_optimizer`.
        settings: Its peak rate, warmup and schedule.
        done_epochs: Epochs trained so far, with the fraction of the one that is running.
    """
    # The first step of a warmup has a rate just above 0, so that every rate of a training is positive.
    scale = min(1.0, (done_epochs + 1e-8) / settings.warmup_epochs) if settings.warmup_epochs else 1.0
    if settings.schedule == "cosine":
        scale *= 0.5 * (1 + math.cos(math.pi * done_epochs / settings.epochs))
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * scale * group["lr_multiplier"]


def make_optimizer(model: TrainableModel, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return the optimizer of all parameters that are trained, in the groups that the model asks for."""
    groups = []
    for group in model.parameter_groups():
        parameters = [parameter for parameter in group["params"] if parameter.requires_grad]
        decay = settings.weight_decay if group["weight_decay"] else 0.0
        if parameters:
            scale = group["lr_multiplier"]
            groups.append({"params": parameters, "weight_decay": decay, "lr_multiplier": scale})
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=True, fused=True)
