"""Batch normalization by the statistics of those images of a batch that keep a block."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class KeptStatistics(TorchFunctionMode):
    """Within, batch normalization in training takes its statistics from some of the images alone.

    Args:
        kept: Which images these are, bool, shape ``(batch,)``.
        fewest: Where there are fewer of them, the running statistics are taken, and stay as they are.
    """

    def __init__(self, kept: Tensor, fewest: int) -> None:
        super().__init__()
        self.kept, self.fewest = kept, fewest

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace batch normalization; anything else is computed as it is."""
        given = kwargs or {}
        return self._normalized(*args, **given) if func is F.batch_norm else func(*args, **given)

    def _normalized(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        images = self.kept.sum()
        count = (images * x[0, 0].numel()).to(exact.dtype)
        share = self.kept.to(exact.dtype).view(-1, *[1] * (x.dim() - 1)) / count.clamp_min(1)
        others = [0, *range(2, x.dim())]
        mean = (exact * share).sum(others)
        off = exact - _by_channel(mean, exact)
        var = (off.square() * share).sum(others)
        if running_mean is not None and running_var is not None:
            few = images < self.fewest
            off = torch.where(few, exact - _by_channel(running_mean.clone(), exact), off)
            unbiased = var.detach() * (count / (count - 1).clamp_min(1))
            var = torch.where(few, running_var.clone(), var)
            for running, found in ((running_mean, mean.detach()), (running_var, unbiased)):
                # `data`: as in PyTorch's own normalization, no earlier pass takes note, which may have saved them.
                running.data.copy_(torch.where(few, running, running.lerp(found.to(running.dtype), momentum)))
        scale = (var + eps).rsqrt()
        result = off * _by_channel(scale if weight is None else scale * weight, exact)
        return (result if bias is None else result + _by_channel(bias, exact)).to(x.dtype)


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2))
