"""Modules that do something else in training than in evaluation, as those of the original network do."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_DROPOUTS: Mapping[str, type[nn.Dropout | nn.AlphaDropout | nn.FeatureAlphaDropout]] = {
    "dropout": nn.Dropout,
    "alpha_dropout": nn.AlphaDropout,
    "feature_alpha_dropout": nn.FeatureAlphaDropout,
}
_NORMS: Mapping[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}


class MapDropout(nn.Module):
    """Drops whole maps, of any number of dims.

    Args:
        p: Probability to be dropped, from 0 to 1.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return the value with some of its maps dropped in training, as it is in evaluation."""
        return torch.feature_dropout(x, self.p, self.training)


class DropPath(nn.Module):
    """Replaces a value by zeros at random: stochastic depth.

    Args:
        p: Probability of zeros, from 0 to 1.
        per_image: Whether each image is drawn for itself, or the whole batch at once.
        scale: Whether what stays is divided by the probability to stay.

    References:
        Huang, Sun, Liu, Sedra, Weinberger. Deep Networks with Stochastic Depth. ECCV 2016.
    """

    def __init__(self, p: float, *, per_image: bool, scale: bool) -> None:
        super().__init__()
        self.p, self.per_image, self.scale = p, per_image, scale

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros for some of the images in training, the value as it is in evaluation."""
        if not self.training or self.p == 0:
            return x
        kept = 1 - self.p
        draws = x.new_empty((x.shape[0] if self.per_image else 1, *(1,) * (x.dim() - 1))).bernoulli_(kept)
        return x * (draws / kept if self.scale and kept > 0 else draws)


class AttentionWithDropout(nn.Module):
    """Scaled dot-product attention that drops entries of its weights in training.

    Args:
        p: Probability to be dropped, from 0 to 1.
        is_causal: Whether a position attends to none after it.
        scale: Of the products; None for one over the square root of the head's width.
    """

    def __init__(self, p: float, *, is_causal: bool, scale: float | None) -> None:
        super().__init__()
        self.p, self.is_causal, self.scale = p, is_causal, scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return what each position attends to."""
        rate = self.p if self.training else 0.0
        return F.scaled_dot_product_attention(
            query, key, value, mask, dropout_p=rate, is_causal=self.is_causal, scale=self.scale
        )


def dropout(kind: str, p: float) -> nn.Module:
    """Return the module of a dropout operation of ATen.

    Args:
        kind: Name of the operation.
        p: Probability to be dropped, from 0 to 1.
    """
    return MapDropout(p) if kind == "feature_dropout" else _DROPOUTS[kind](p)


def batch_norm(
    statistics: Mapping[str, Tensor], *, dims: int, width: int, eps: float, momentum: float | None
) -> nn.Module:
    """Return batch normalization with the parameters and running statistics of some nodes.

    Args:
        statistics: State of the module: ``weight`` and ``bias`` if it is affine, ``running_mean``, ``running_var`` and
            ``num_batches_tracked`` if it tracks statistics.
        dims: Dims of what is normalized.
        width: Number of nodes.
        eps: Added to the variance.
        momentum: Share of the batch in the running statistics; None for the average over all batches.
    """
    norm = _NORMS[dims](
        width,
        eps=eps,
        momentum=momentum,
        affine="weight" in statistics,
        track_running_stats="running_mean" in statistics,
    )
    own = {name: value.clone() for name, value in statistics.items()}
    norm.load_state_dict({**norm.state_dict(), **own}, assign=True)  # with their dtype and device
    return norm
