"""A device that is emulated on the processor, to see where tensors are and what is computed where.

Its tensors are wrappers that say they are elsewhere, with values behind them. As on a real device, an operation of
tensors of both places is an error, values are read by copies alone, and a generator belongs to a device.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = "lazy"  # a type that torch knows, has no backend here, and runs backward passes of in the calling thread
_BETWEEN = {"aten::copy_", "aten::_to_copy"}
_INDEXING = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}  # whose indices may lie on the processor
_WORK = {"aten::convolution", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear"}


class OnDevice(Tensor):
    """A tensor of the device."""

    behind: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> "OnDevice":
        made: OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=DEVICE,
        )
        made.behind = real
        return made

    def tolist(self) -> Any:
        """The values, as a list; torch refuses to read them of a wrapper."""
        return self.cpu().tolist()

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["behind"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: None, size: Any, stride: Any) -> "OnDevice":
        return OnDevice(inner["behind"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} of a tensor of the device outside of `emulated`")


class Emulation(TorchDispatchMode):
    """What happens within: counts of what is computed and of what is read.

    Attributes:
        work: Elements that products and convolutions give, by place: ``cpu``, ``meta`` or the device.
        copies: Elements copied from the device to the processor.
        reads: Single values read, each of which waits for the device.
        waits: Calls that wait for all that the device does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work: Counter[str] = Counter()
        self.copies = self.reads = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name
        tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        inside = any(isinstance(each, OnDevice) for each in tensors)
        if inside and name not in _BETWEEN | _INDEXING:
            for each in tensors:
                if not isinstance(each, OnDevice) and each.dim():
                    raise RuntimeError(f"{name}: expected all tensors on one device, found {DEVICE} and cpu")
        to = kwargs.get("device")
        there = inside if to is None else torch.device(to).type == DEVICE
        if to is not None and there:
            kwargs["device"] = torch.device("cpu")
        self._count(name, tensors, inside=inside, there=there)
        found = func(*unwrapped(args), **unwrapped(kwargs))
        if name in _WORK:
            self.work[DEVICE if there else found.device.type] += found.numel()
        if not there:
            return found
        found = tree_map_only(Tensor, OnDevice, found)
        return return_and_correct_aliasing(func, args, kwargs, found) if inside else found

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise it would be imported, which takes seconds

    def _count(self, name: str, tensors: list[Tensor], *, inside: bool, there: bool) -> None:
        if name == "aten::_local_scalar_dense" and inside:
            self.reads += 1
        elif (name == "aten::_to_copy" and inside and not there) or (
            name == "aten::copy_" and not isinstance(tensors[0], OnDevice) and inside
        ):
            self.copies += tensors[-1].numel()


class AnyGenerator(torch.Generator):
    """A generator of the processor, for the device too."""

    def __new__(cls, device: Any = "cpu") -> "AnyGenerator":
        return super().__new__(cls, "cpu" if torch.device(device).type == DEVICE else device)


def unwrapped(value: Any) -> Any:
    """The values behind tensors of the device, wherever they are."""
    return tree_map_only(OnDevice, lambda each: each.behind, value)


@contextmanager
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulation]:
    """Emulate the device within; its generators and its optimizers that are one kernel are those of the processor."""
    emulation, tensor, autocast = Emulation(), torch.tensor, torch.autocast

    def made(data: Any, *, device: Any = "cpu", **options: Any) -> Tensor:  # torch makes it below of what modes see
        # On the processor first, also where `with torch.device("meta")` would have it elsewhere.
        return tensor(data, device="cpu", **options).to(device)

    def casting(device_type: str, *given: Any, **options: Any) -> torch.autocast:
        return autocast("cpu" if device_type == DEVICE else device_type, *given, **options)

    def wait(device: Any = None) -> None:
        emulation.waits += 1

    with monkeypatch.context() as patch, emulation:
        patch.setattr(torch, "Generator", AnyGenerator)
        patch.setattr(torch, "tensor", made)
        patch.setattr(torch, "autocast", casting)
        patch.setattr(torch.accelerator, "synchronize", wait)
        for module in map(import_module, ("torch.optim.adam", "torch.optim.sgd", "torch.optim.optimizer")):
            for kind in ("fused", "foreach"):
                known = f"_get_{kind}_kernels_supported_devices"
                if hasattr(module, known):
                    patch.setattr(module, known, lambda: ["cpu", DEVICE])
        yield emulation
