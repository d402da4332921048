"""In what numbers a training computes, and whether its step is compiled.

Parameters, their gradients and the loss are float32 whatever the precision; what is narrower are the products of
matrices and convolutions inside the network.
"""

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nas_blockout.randomness.draws import DrawCounter, DrawsBefore, Randomness
from nas_blockout.training.training_settings import MemoryFormat, Precision
from nas_blockout.training_protocol import TrainableLayer, TrainableModel

_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def autocast(precision: Precision, device: str | torch.device) -> AbstractContextManager[object]:
    """Compute a forward pass within; weights that were narrowed are kept until it ends, so one step at a time.

    Args:
        precision: Of the training.
        device: Of the model.
    """
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def products(precision: Precision, device: str | torch.device) -> Iterator[None]:
    """Set within how an NVIDIA card multiplies numbers of 32 bits: as they are, or in TensorFloat-32.

    PyTorch lets convolutions use TensorFloat-32 unless it is told otherwise; within, ``float32`` means what it says. On
    other devices nothing changes: there ``tf32`` computes what ``float32`` does.

    Args:
        precision: Of the training.
        device: Of the model.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn  # whose parts its types do not know
    places = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def precision_note(precision: Precision, device: str | torch.device) -> str | None:
    """Return what should be known about a precision on a device; None if it is what its name says."""
    kind = torch.device(device).type
    if precision == "tf32" and kind != "cuda":
        return f"training.precision: tf32 exists on NVIDIA cards alone; on a device {kind!r} it computed in float32"
    return None


def place(model: nn.Module, device: str | torch.device, memory_format: MemoryFormat = "contiguous") -> None:
    """Move a model to a device, with weights of convolutions in a memory format."""
    model.to(device)
    if memory_format != "contiguous":
        model.to(memory_format=_FORMATS[memory_format])  # type: ignore[call-overload]  # its types do not know it


def placed(images: Tensor, device: str | torch.device, memory_format: MemoryFormat = "contiguous") -> Tensor:
    """Return images, shape ``(batch, channels, height, width)``, on a device in a memory format."""
    return images.to(device, non_blocking=True, memory_format=_FORMATS[memory_format])


def require_compiler(device: str | torch.device, ranks: int = 1) -> None:
    """Refuse to compile where there is nothing to compile with, or several ranks meet inside a step.

    Args:
        device: Where the model is.
        ranks: Processes that train the model together.

    Raises:
        ValueError: A compiler is missing, or there are several ranks.
    """
    if ranks > 1:
        raise ValueError(
            f"training.compile needs a training in one process, got {ranks} ranks, which meet inside a step to "
            "normalize; set training.compile to false, or give a trial one GPU"
        )
    from torch._inductor import config  # slow to import, and needed only here

    if torch.device(device).type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ValueError(
                "training.compile needs Triton on an NVIDIA card, which is not installed or too old for it"
            )
        return
    names = [name for name in config.cpp.cxx if name]
    if not any(shutil.which(name) for name in names):
        raise ValueError(
            f"training.compile needs a C++ compiler on a processor, found none of {', '.join(names)}; "
            "install g++, or set training.compile to false"
        )


class CompiledLoss:
    """The loss of a batch as one compiled function; its random numbers are drawn before it is called.

    Args:
        model: Whose loss it is.
        device: Where the model is.
        precision: Of the training.
        backend: What compiles, as of `torch.compile`.
        fullgraph: Whether Python between parts that are compiled is an error; a user's network may need it.

    Attributes:
        counts: How many numbers a batch asks for, by the shapes of images and labels; forgotten by `forget`.
    """

    def __init__(
        self,
        model: TrainableModel,
        device: torch.device,
        precision: Precision,
        *,
        backend: str | Callable[..., object] = "inductor",
        fullgraph: bool = False,
    ) -> None:
        self.model, self.device, self.precision = model, device, precision
        self.counts: dict[tuple[torch.Size, torch.Size], DrawCounter] = {}
        torch.compiler.reset()  # what was compiled for another model counts toward the most forms of one function
        self._compiled = torch.compile(self._compute, backend=backend, fullgraph=fullgraph)

    def __call__(self, x: Tensor, y: Tensor, generator: Randomness) -> Tensor:
        """Return the loss of a batch, a scalar with gradient.

        Args:
            x: Images, shape ``(batch, channels, height, width)``.
            y: Labels, shape ``(batch,)``, or probabilities, shape ``(batch, classes)``.
            generator: On the device.
        """
        assert isinstance(generator, torch.Generator)
        key = x.shape, y.shape
        if key not in self.counts:
            self.counts[key] = self._counted(x, y)
        loss: Tensor = self._compiled(x, y, *self.counts[key].drawn(generator, self.device))
        return loss

    def forget(self) -> None:
        """Count anew, since the model draws otherwise from now on."""
        self.counts.clear()

    def _compute(self, x: Tensor, y: Tensor, bits: Tensor, uniforms: Tensor) -> Tensor:
        with autocast(self.precision, self.device):
            return self.model.loss(x, y, DrawsBefore(bits, uniforms))

    def _counted(self, x: Tensor, y: Tensor) -> DrawCounter:
        """Count the numbers of a step without computing it, on a copy whose tensors have shapes and no memory."""
        counter, fake = DrawCounter(), FakeTensorMode(allow_non_fake_inputs=True)
        state = [*self.model.parameters(), *self.model.buffers()]
        twin = copy.deepcopy(self.model, {id(tensor): fake.from_tensor(tensor) for tensor in state})
        with fake:
            twin.loss(x, y, counter)
        for layer, seen in zip(self.model.modules(), twin.modules(), strict=True):
            if isinstance(layer, TrainableLayer):
                layer.know(seen)
        return counter
