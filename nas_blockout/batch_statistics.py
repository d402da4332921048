"""Statistics of batch normalization for evaluation, estimated for the network that is evaluated.

The running statistics that training gathers belong to the networks that training computed: under drawn masks, with
nodes dropped, or with weights that have changed since. In evaluation nothing is drawn, so the statistics of the hidden
layers are others, and an evaluation with the running ones scores a network that nobody has.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

# A thousand images an epoch are at most 5% of an epoch of 10,000. Half of all are kept for the last epoch, whose score
# decides most: see docs/results/evaluation-statistics.md for what fewer cost.
STATISTICS_IMAGES = 1000
EPOCH_IMAGES = STATISTICS_IMAGES // 2
MOST_IMAGES = 5000  # beyond them an estimate is no better
FORWARD_SHARE = 3  # a forward pass alone is charged as a third of forward and backward
_Norm = nn.modules.batchnorm._BatchNorm


def normalizations(model: nn.Module) -> list[_Norm]:
    """Return the batch normalization layers of a model that evaluate with gathered statistics."""
    return [module for module in model.modules() if isinstance(module, _Norm) and module.running_mean is not None]


def statistics_images(epoch: int, epochs: int) -> int:
    """Return from how many training images the statistics after an epoch are estimated, numbered from 0."""
    return min(MOST_IMAGES, EPOCH_IMAGES * (epochs + 1)) if epoch == epochs - 1 else EPOCH_IMAGES


def statistics_passes(images: int) -> int:
    """Return the sample passes that an estimate from so many images is charged."""
    return -(-images // FORWARD_SHARE)


@torch.no_grad()
def estimate_statistics(
    model: nn.Module, batches: Iterable[Tensor], forward: Callable[[Tensor], object] | None = None
) -> None:
    """Estimate the statistics of batch normalization anew, as evaluation computes the network; in place.

    The model runs in eval mode, so that nothing is drawn, with its normalization layers alone in training mode. A layer
    that no image reaches keeps the statistics that it has, and so does one that a single image reaches in a batch of
    one. The modes of all modules are left as they were.

    Args:
        model: With or without batch normalization.
        batches: Images as evaluation sees them, each ``(batch, channels, height, width)`` on the model's device.
        forward: What evaluation calls; `model` itself by default.
    """
    norms = normalizations(model)
    if not norms:
        return
    modes = {module: module.training for module in model.modules()}
    momenta, before = [norm.momentum for norm in norms], _copies(norms)
    reached: Counter[nn.Module] = Counter()
    model.eval()
    hooks = [norm.register_forward_pre_hook(partial(_average, reached)) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    try:
        for batch in batches:
            if len(batch) > 1:  # one image has no variance over the batch
                (forward or model)(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum, (mean, variance, steps) in zip(norms, momenta, before, strict=True):
            new_mean, new_variance, new_steps = _statistics(norm)
            if not reached[norm]:  # no image came here
                new_mean.copy_(mean)
                new_variance.copy_(variance)
            new_steps.copy_(steps)
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


def _average(reached: Counter[nn.Module], norm: nn.Module, inputs: object) -> None:
    """Let the next batch count as much as each before it: with no momentum at all, each would be waited for."""
    if norm.training:
        reached[norm] += 1
        norm.momentum = 1 / reached[norm]  # type: ignore[assignment]  # a number of a normalization


@contextmanager
def estimated_statistics(
    model: nn.Module, batches: Sequence[Tensor], forward: Callable[[Tensor], object] | None = None
) -> Iterator[None]:
    """Evaluate within: `estimate_statistics`, and afterwards the statistics that the model had before."""
    before = _copies(normalizations(model))
    estimate_statistics(model, batches, forward)
    try:
        yield
    finally:
        for norm, values in zip(normalizations(model), before, strict=True):
            for value, earlier in zip(_statistics(norm), values, strict=True):
                value.copy_(earlier)


def _copies(norms: Sequence[_Norm]) -> list[tuple[Tensor, ...]]:
    return [tuple(value.clone() for value in _statistics(norm)) for norm in norms]


def _statistics(norm: _Norm) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance, steps = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert mean is not None
    assert variance is not None
    assert steps is not None
    return mean, variance, steps
