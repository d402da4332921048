"""The optimizer of a training, and the learning rate of each of its steps."""

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from nas_blockout.serialization import closest
from nas_blockout.settings_fields import Conflict
from nas_blockout.training.training_settings import NORMS_AND_BIASES, TrainingSettings
from nas_blockout.training_protocol import ParameterGroup, TrainableModel

# Of one-cycle: where it begins and ends, as shares of the peak; those of torch.
_CYCLE_START = 1 / 25
_CYCLE_END = _CYCLE_START / 10_000


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: TrainingSettings, done_epochs: float) -> None:
    """Set the rate of every parameter group for the next step.

    Args:
        optimizer: Made by `make_optimizer`.
        settings: Its peak rate, warmup and schedule.
        done_epochs: Epochs trained so far, with the fraction of the one that is running.
    """
    # The first step of a warmup has a rate just above 0, so that every rate of a training is positive.
    scale = min(1.0, (done_epochs + 1e-8) / settings.warmup_epochs) if settings.warmup_epochs else 1.0
    scale *= scheduled(settings, done_epochs)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * scale * group["lr_multiplier"]


def scheduled(settings: TrainingSettings, done_epochs: float) -> float:
    """Return the learning rate as a share of the peak, without warmup.

    Every schedule is a function of the share of the training that is done, so that a training that is divided into
    stages, or is longer, has the same one.

    Args:
        settings: The schedule and its settings.
        done_epochs: Epochs trained so far, with the fraction of the one that is running.

    References:
        Loshchilov, Hutter. SGDR: Stochastic Gradient Descent with Warm Restarts. ICLR 2017, eq. 5 without restarts.
        Smith, Topin. Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates. 2017.

    Differs from the papers in: one-cycle leaves the momentum as it is, and both of its parts are cosines, as in torch.
    """
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done_epochs / settings.epochs))
    done = done_epochs / settings.epochs
    if settings.schedule == "linear":
        return 1 - done
    if settings.schedule == "step":
        return settings.schedule_factor ** sum(milestone <= done for milestone in settings.schedule_milestones)
    if settings.schedule == "one-cycle":
        rise = settings.schedule_rise
        if done <= rise:
            return _cosine(_CYCLE_START, 1.0, done / rise)
        return _cosine(1.0, _CYCLE_END, (done - rise) / (1 - rise))
    return 1.0


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(model: TrainableModel, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return the optimizer of all parameters that are trained, in the groups that the model asks for."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = []
    for group in model.parameter_groups():
        for decays, parameters in _divided(group, names, settings.no_decay):
            decay = settings.weight_decay if decays else 0.0
            groups.append({"params": parameters, "weight_decay": decay, "lr_multiplier": group["lr_multiplier"]})
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    nesterov = settings.momentum > 0  # without momentum there is nothing to look ahead along, and torch refuses it
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=nesterov, fused=True)


def _divided(
    group: ParameterGroup, names: Mapping[int, str], no_decay: Sequence[str]
) -> Iterator[tuple[bool, list[nn.Parameter]]]:
    """Yield the parameters of a group that are trained: those that decay, and those that do not."""
    parameters = [parameter for parameter in group["params"] if parameter.requires_grad]
    decays = group["weight_decay"] or (group.get("norms_and_biases", False) and NORMS_AND_BIASES not in no_decay)
    patterns = [pattern for pattern in no_decay if decays and pattern != NORMS_AND_BIASES]
    exempt = {id(p) for p in parameters if any(_fits(names.get(id(p), ""), pattern) for pattern in patterns)}
    for decaying in (True, False):
        chosen = [p for p in parameters if (decays and id(p) not in exempt) == decaying]
        if chosen:
            yield decaying, chosen


def _fits(name: str, pattern: str) -> bool:
    """Whether a pattern fits a name or what follows one of its dots: methods and graphs put names before it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def unmatched(model: nn.Module, no_decay: Sequence[str]) -> Iterator[Conflict]:
    """Yield the patterns that fit no parameter of a network, which are mistakes.

    Args:
        model: The network as it is trained.
        no_decay: As in the settings.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in no_decay:
        if pattern != NORMS_AND_BIASES and not any(_fits(name, pattern) for name in names):
            match = closest(pattern, [NORMS_AND_BIASES, *names])
            remedy = f"did you mean {match!r}?" if match else f"names are such as {', '.join(names[:3])}"
            message = f"training.no_decay: every pattern must fit a parameter of the network, got {pattern!r}; {remedy}"
            yield Conflict(message, "training.no_decay")
