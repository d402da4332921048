"""Batch normalization by the statistics of a batch that several processes share."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_Norm = nn.modules.batchnorm._BatchNorm
Sum = Callable[[Tensor], Tensor]


class SharedBatch:
    """What normalization needs to know of a step of training in which several processes take part.

    Args:
        rank: Number of this process, from 0.
        size: Number of processes.
        total: Returns the sum of a tensor over all processes.

    Attributes:
        running: Whether the loss of such a step is being computed; at any other time every process is by itself.
        counted: Whether the rows of this process count in it.
    """

    def __init__(self, rank: int, size: int, total: Sum) -> None:
        self.rank, self.size, self.total = rank, size, total
        self.running, self.counted = False, True

    def __deepcopy__(self, memo: object) -> "SharedBatch":
        """Return itself: a copied network is in the same processes."""
        return self

    def table(self, row: Tensor) -> Tensor:
        """Return the rows of all processes, shape ``(processes, numbers)``."""
        rows = row.new_zeros(self.size, len(row))
        rows[self.rank] = row
        return self.total(rows)


class _Normalize(torch.autograd.Function):
    """Normalize rows by the moments of all rows of all processes.

    The moments are merged as in Chan, Golub, LeVeque. Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances. Stanford 1979: a sum of squares less a square of the sum would lose digits.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, batch: SharedBatch
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        dims, channels = _all_but_channels(x), x.shape[1]
        count = exact.new_tensor([x.numel() // channels if batch.counted else 0])
        if x.numel():
            own_variance, own_mean = torch.var_mean(exact, dims, correction=0)
        else:
            own_variance = own_mean = exact.new_zeros(channels)
        table = batch.table(torch.cat((own_mean, own_variance, count)))
        means, variances, counts = table[:, :channels], table[:, channels:-1], table[:, -1:]
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (counts * (variances + (means - mean).square())).sum(0) / total
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), total)
        ctx.batch, ctx.counted = batch, batch.counted
        ctx.mark_non_differentiable(mean, variance, total)
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps), mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        x, weight, mean, scale, total = ctx.saved_tensors
        dims, shape = _all_but_channels(x), (1, -1, *(1,) * (x.dim() - 2))
        exact = gradient.to(mean.dtype)
        normalized = (x - mean.view(shape)) * scale.view(shape)
        own_bias, own_weight = exact.sum(dims), (exact * normalized).sum(dims)
        of_bias, of_weight = ctx.batch.total(torch.stack((own_bias, own_weight)))
        if ctx.counted:  # else no moment depends on these rows
            exact = exact - (of_bias.view(shape) + normalized * of_weight.view(shape)) / total
        factor = scale if weight is None else scale * weight
        into = (exact * factor.view(shape)).to(x.dtype)
        if weight is None:
            return into, None, None, None, None
        return into, own_weight.to(weight.dtype), own_bias.to(weight.dtype), None, None


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


class _ByWholeBatch(TorchFunctionMode):
    """Normalize by the batch of all processes within, whatever code of a layer calls for it."""

    def __init__(self, batch: SharedBatch) -> None:
        super().__init__()
        self.batch = batch

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is F.batch_norm:
            return _batch_norm(self.batch, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _batch_norm(  # noqa: PLR0913  # the arguments of `torch.nn.functional.batch_norm`, under their names
    batch: SharedBatch,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    y, mean, variance, count = _Normalize.apply(input, weight, bias, eps, batch)  # type: ignore[no-untyped-call]
    unbiased = variance * (count / (count - 1))
    with torch.no_grad():
        for running, new in ((running_mean, mean), (running_var, unbiased)):
            if running is not None:
                running.mul_(1 - momentum).add_(new.to(running.dtype), alpha=momentum)
    result: Tensor = y
    return result


class _Synchronized(_Norm):
    """A layer of batch normalization while its model is trained by several processes."""

    shared_batch: SharedBatch

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer computes: by the whole batch in a step of training, else as ever."""
        if not (self.training and self.shared_batch.running):
            return super().forward(x)
        with _ByWholeBatch(self.shared_batch):
            return super().forward(x)


@contextmanager
def synchronized(model: nn.Module, batch: SharedBatch) -> Iterator[None]:
    """Train within: every layer of batch normalization of a model normalizes by the batch of all processes.

    The layers keep their identity, names and state: only their class is another one, and is put back at the end.

    Args:
        model: Its layers of batch normalization are of any dimensions.
        batch: What they share.
    """
    norms = {module: module.__class__ for module in model.modules() if isinstance(module, _Norm)}
    for norm, kind in norms.items():
        norm.__class__ = _synchronized_class(kind)
        norm.shared_batch = batch  # type: ignore[assignment]  # of the class that it has now
    try:
        yield
    finally:
        for norm, kind in norms.items():
            norm.__class__ = kind
            del norm.shared_batch


_CLASSES: dict[type, type] = {}  # made once a kind, so that layers of one kind are of one class


def _synchronized_class(kind: type) -> type:
    if kind not in _CLASSES:
        _CLASSES[kind] = type(f"Synchronized{kind.__name__}", (_Synchronized, kind), {})
    return _CLASSES[kind]
