"""A backbone: the class of a network, whose constructor says what its settings are."""

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor, nn

from nas_blockout.settings_fields import Range, check


@dataclass(frozen=True, slots=True)
class SmallNetSettings:
    """Settings of two convolutions and a linear layer.

    Args:
        width: Channels of the first convolution; the second has twice as many.
        pooling: How feature maps become features.
    """

    width: Annotated[int, Range(ge=1, le=256)] = 8
    pooling: Literal["mean", "max"] = "mean"

    def __post_init__(self) -> None:
        check(self)


class SmallNet(nn.Module):
    """Two convolutions and a linear layer.

    Args:
        settings: Widths and pooling.
        shape: Channels, height and width of an image.
        classes: Number of classes.
    """

    def __init__(self, settings: SmallNetSettings, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        pool = nn.AdaptiveAvgPool2d(1) if settings.pooling == "mean" else nn.AdaptiveMaxPool2d(1)
        self.layers = nn.Sequential(
            nn.Conv2d(shape[0], settings.width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(settings.width, 2 * settings.width, 3, stride=2, padding=1),
            nn.ReLU(),
            pool,
            nn.Flatten(),
        )
        self.classes = nn.Linear(2 * settings.width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        logits: Tensor = self.classes(self.layers(x))
        return logits
