"""Where the images of a training are kept: on the device that trains on them, if they fit there."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ImageCache = Literal["none", "disk"]
MEMORY_SHARE = 0.25
DECODERS = 2


@dataclass(frozen=True, slots=True)
class Placement:
    """Where images are kept and batches are made; it changes no number.

    Args:
        device: Where batches are made.
        memory_share: Part of the free memory of an accelerator that a split may take, in [0, 1]. The images of a larger
            split stay in the memory of the processor; every batch is copied while the batch before it is computed on.
        decoders: Processes for each split that decode image files which are not in memory, 1 or more.
        image_cache: Whether such files are decoded once and kept on the ``disk``, in the cache of the data root.

    Raises:
        ValueError: A value is out of range.
    """

    device: str | torch.device = "cpu"
    memory_share: float = MEMORY_SHARE
    decoders: int = DECODERS
    image_cache: ImageCache = "none"

    def __post_init__(self) -> None:
        if self.decoders < 1:
            raise ValueError(f"decoders must be 1 or more, got {self.decoders}")
        if not 0 <= self.memory_share <= 1:
            raise ValueError(f"memory_share must lie in [0, 1], got {self.memory_share}")

    def of_images(self, images: Tensor) -> Tensor:
        """Return images on the device if they fit there, else as they are."""
        device = torch.device(self.device)
        if device.type == "cpu":
            return images.cpu()
        fits = self.memory_share > 0 and images.nbytes <= self.memory_share * free_bytes(device)
        return images.to(device) if fits else images


def free_bytes(device: torch.device) -> float:
    """Return how much memory of an accelerator nobody uses; infinite where that cannot be asked."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else float("inf")
