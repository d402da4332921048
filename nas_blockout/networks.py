"""What a method or an exporter can ask of a network beyond its logits."""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Runtime = Literal["torch", "onnxruntime"]


@dataclass(frozen=True, slots=True)
class Connection:
    """A weight of a network and the layers of nodes that it connects.

    Args:
        weight: Name of the parameter, shape ``(target, source)`` or ``(target, source, height, width)``.
        source: Layer of nodes that it reads, or None for the image.
        target: Layer of nodes that it ends in.
        positions: Spatial positions at which the weight is used for one image, 1 or more; 1 for a linear layer.

    Raises:
        ValueError: A name is empty, or there are no positions.
    """

    weight: str
    source: str | None
    target: str
    positions: int = 1

    def __post_init__(self) -> None:
        for name in ("weight", "source", "target"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} must be a name, got an empty one in {self}")
        if self.positions < 1:
            raise ValueError(f"positions must be at least 1, got positions={self.positions} for {self.weight!r}")


class Network(nn.Module):
    """A backbone's network: called as ``network(x, generator)``, it gives logits."""

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The weights that a method may mask, in the order of the forward pass.

        Raises:
            NotImplementedError: The network does not say.
        """
        raise NotImplementedError(f"{type(self).__name__} must say which layers of nodes its weights connect")

    def for_inference(self, *, runtime: Runtime = "torch", batch: int | None = None) -> nn.Module:
        """Return a copy that computes the same in eval mode, in the form that is expected to run fastest.

        Args:
            runtime: What will run it.
            batch: Images at a time, 1 or more; None for one image as well as many.
        """
        return copy.deepcopy(self)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return logits, shape ``(batch, classes)``.

        Args:
            x: Images, shape ``(batch, channels, height, width)``.
            generator: Of the draws of a method's layers in training, on the device of `x`.
        """
        raise NotImplementedError(f"{type(self).__name__} must say what it computes")
