"""The network of the study `compress`: torchvision's ResNet-18 for gray images, with the names of its weights."""

from typing import Any

from torch import Tensor

from nas_blockout.lazy_torchvision import torchvision

_ResNet: Any = torchvision.models.ResNet


class GrayResNet(_ResNet):  # type: ignore[misc]  # torchvision is imported when it is first used
    """torchvision's ResNet, which reads three channels, shown the one channel of gray images three times."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(batch, classes)`` of images ``(batch, 1, height, width)``."""
        logits: Tensor = super().forward(x.expand(-1, 3, -1, -1))
        return logits


def resnet18(num_classes: int) -> GrayResNet:
    """Return a ResNet-18 with initial weights; the weights of torchvision's fit by name and shape.

    Args:
        num_classes: Number of classes.
    """
    return GrayResNet(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
