"""Mixup and CutMix: every image of a batch is mixed with its neighbor in the batch, and so are their labels.

What is drawn for a batch depends on the seed, the epoch and the number of the batch alone: a resumed run, or one on
another device, draws the same.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nas_blockout.training.training_settings import TrainingSettings

_STREAM = 104_729  # keeps these draws apart from others of the same seed


@dataclass(frozen=True, slots=True)
class Box:
    """A piece of an image, in pixels: rows from `top` to `bottom`, columns from `left` to `right`, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int


class Mixing:
    """Mixes the images and the labels of a batch, as the settings of a training say.

    Args:
        settings: Their `mixup` and `cutmix` are the parameters of the Beta distributions; one of them is above 0.
        classes: Number of classes.
        seed: Of the training.

    References:
        Zhang, Cisse, Dauphin, Lopez-Paz. mixup: Beyond Empirical Risk Minimization. ICLR 2018.
        Yun, Han, Oh, Chun, Choe, Yoo. CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
        Features. ICCV 2019.

    Differs from the papers in: an image is mixed with its neighbor in the shuffled batch rather than with one drawn
    anew, and a piece may be cut off at the rim, as in torchvision, whose transforms give the same from the same draws.
    """

    def __init__(self, settings: TrainingSettings, classes: int, *, seed: int) -> None:
        self._alphas = {"mixup": settings.mixup, "cutmix": settings.cutmix}
        self._names = [name for name, alpha in self._alphas.items() if alpha > 0]
        assert self._names, "something is mixed"
        self._classes = classes
        self._seed = seed
        self._epoch, self._batch = 0, 0

    def begin(self, epoch: int, batch: int = 0) -> None:
        """Say which batch is the next one: its epoch, and its number within it, both from 0."""
        self._epoch, self._batch = epoch, batch

    def __call__(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return mixed images, and the probability of every class for each of them, shape ``(batch, classes)``.

        Args:
            x: Images, shape ``(batch, channels, height, width)``; left as they are.
            y: Labels, shape ``(batch,)``.
            generator: Of the draws of the model; not used.
        """
        draws = np.random.default_rng((self._seed, self._epoch, self._batch, _STREAM))
        self._batch += 1
        name = self._names[0] if len(self._names) == 1 else self._names[int(draws.integers(2))]
        share = float(draws.beta(self._alphas[name], self._alphas[name]))
        targets = F.one_hot(y, self._classes).to(x.dtype)
        if name == "mixup":
            return blended(x, share), blended(targets, share)
        height, width = x.shape[-2:]
        middle = int(draws.integers(height)), int(draws.integers(width))
        box = box_around(middle, share, height=height, width=width)
        covered = (box.bottom - box.top) * (box.right - box.left) / (height * width)
        return pasted(x, box), blended(targets, 1 - covered)


def blended(values: Tensor, share: float) -> Tensor:
    """Return so much of every row, and the rest of the row before it; of the first row, the last one."""
    return values.roll(1, 0).mul_(1 - share).add_(values.mul(share))


def pasted(images: Tensor, box: Box) -> Tensor:
    """Return every image with a piece of the image before it in its place."""
    mixed = images.clone()
    piece = (..., slice(box.top, box.bottom), slice(box.left, box.right))
    mixed[piece] = images.roll(1, 0)[piece]
    return mixed


def box_around(middle: tuple[int, int], share: float, *, height: int, width: int) -> Box:
    """Return the piece that leaves so much of an image, cut off at the rim.

    Args:
        middle: Its row and column.
        share: What is left of the image where nothing is cut off, in [0, 1].
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """
    half = 0.5 * math.sqrt(1 - share)
    down, right = int(half * height), int(half * width)
    row, column = middle
    return Box(max(row - down, 0), min(row + down, height), max(column - right, 0), min(column + right, width))
