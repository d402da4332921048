"""Multiply-accumulates, counted while a network or one of its operations runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_macs(model: nn.Module, images: Tensor) -> int:
    """Return the multiply-accumulates an image of the convolutions and matrix products of a network.

    Products within recurrent layers and attention are counted, on whichever device the network is.

    Args:
        model: In eval mode.
        images: One image, shape ``(1, channels, height, width)``.
    """
    with counting() as counter, torch.no_grad():
        model(images)
    return int(counter.get_total_flops()) // 2  # the counter counts a multiplication and an addition


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Count the floating-point operations of what runs inside, two for each multiply-accumulate.

    Attention and recurrent layers run as single products meanwhile: the counter sees nothing of oneDNN's LSTM, of the
    attention kernel of the CPU, or of the fast path of `nn.MultiheadAttention`, and would count them as free.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    libraries: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    enabled = [each.enabled for each in libraries]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for each in libraries:
            each.enabled = False
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=_MORE) as counter:
            yield counter
    finally:
        for each, was in zip(libraries, enabled, strict=True):
            each.enabled = was
        torch.backends.mha.set_fastpath_enabled(fast)


def _of_vector(matrix: Sequence[int], vector: Sequence[int], *, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _of_vectors(first: Sequence[int], second: Sequence[int], *, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * first[0]


_MORE: dict[Any, Any] = {torch.ops.aten.mv: _of_vector, torch.ops.aten.dot: _of_vectors}
