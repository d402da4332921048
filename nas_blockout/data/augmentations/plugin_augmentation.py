"""What an augmentation of a plug-in says of itself: its settings, its draws, and what these do to a batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas_blockout.plugins.choices import require_settings
from nas_blockout.plugins.installed import Origin


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random variation of training images, as a plug-in says it: what is drawn, and what it does to images.

    It is drawn on the processor for a whole epoch, whatever the device, so that a resumed training, one on another
    device and one of several processes see the same images.

    Args:
        settings: A frozen dataclass of its settings, which all have a default; in a study they are
            ``data.augment_options``.
        draw: Returns the choices for some images, shape ``(choices, images)``, float32 on the processor:
            ``draw(settings, images, side, generator)`` with the number of the images, their height and width, and the
            generator, from which alone it draws.
        apply: Returns the images varied: ``apply(settings, images, choices)`` with bytes, uint8 of shape
            ``(images, channels, height, width)``, and their choices on the same device. It draws nothing, changes no
            input, and an image depends on its own choices alone. The result has the shape and the type of the images.
        summary: What it does, in one line.
    """

    settings: type
    draw: Callable[[Any, int, tuple[int, int], torch.Generator], Tensor]
    apply: Callable[[Any, Tensor, Tensor], Tensor]
    summary: str = "a plug-in"


@dataclass(frozen=True, slots=True)
class Applied:
    """An augmentation with its settings, which refuses what it returns if it has another form than it must have.

    Args:
        name: Its name, for errors.
        augmentation: What it does.
        own: Its settings.
    """

    name: str
    augmentation: Augmentation
    own: Any

    def draw(self, count: int, side: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Return the choices for some images.

        Raises:
            ValueError: They have another shape or type than they must have.
        """
        choices = self.augmentation.draw(self.own, count, side, generator)
        if choices.dim() != 2 or choices.shape[1] != count or choices.dtype != torch.float32:
            raise ValueError(
                f"the augmentation {self.name} must draw float32 of the shape (choices, {count}), got {choices.dtype} "
                f"of {tuple(choices.shape)}"
            )
        return choices

    def apply(self, images: Tensor, choices: Tensor, background: Tensor | None) -> Tensor:
        """Return images varied by their choices.

        Raises:
            ValueError: They have another shape or type than before.
        """
        varied = self.augmentation.apply(self.own, images, choices)
        if varied.shape != images.shape or varied.dtype != images.dtype:
            raise ValueError(
                f"the augmentation {self.name} must keep shape and type of images, {images.dtype} of "
                f"{tuple(images.shape)}, got {varied.dtype} of {tuple(varied.shape)}"
            )
        return varied


def read(found: Any, origin: Origin) -> Augmentation:
    """Return the augmentation that a plug-in stands for.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(found, Augmentation):
        raise ValueError(
            f"it must be a nas_blockout.data.Augmentation, with its settings, draws and what they do, got {found!r}"
        )
    require_settings(found.settings)
    return found
