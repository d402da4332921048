"""A network of a user that fails in training as one does on a device, or for want of memory; loaded from this file."""

from typing import Any

import torch
from torch import Tensor, nn

ERRORS = {
    "assert": lambda: torch.AcceleratorError("CUDA error: device-side assert triggered\nCUDA kernel errors might be"),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`"),
    "cudnn": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    "driver": lambda: torch.AcceleratorError("CUDA error: out of memory"),
    "device memory": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    "value": lambda: ValueError("of the network itself"),
}
LARGEST_TRIAL = 8  # images with which a network is tried before it is trained


class Failing(nn.Module):
    """Raises in the first step of training."""

    def __init__(self, num_classes: int, error: str) -> None:
        super().__init__()
        self.error = error
        self.classes = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > LARGEST_TRIAL:
            self.fail()
        logits: Tensor = self.classes(x.flatten(1))
        return logits

    def fail(self) -> None:
        if self.error == "allocator":
            torch.empty(10**15)
        elif self.error == "python":
            bytearray(2**62)
        else:
            raise ERRORS[self.error]()


def backbone(error: str) -> dict[str, Any]:
    return {"name": "module", "factory": f"{__file__}:Failing", "arguments": {"error": error}}
