"""What the errors of a trial are: how they read in one line, and whether their process can go on."""

import errno
import re
from collections.abc import Callable, Iterator

import torch

# torch raises errors of a device as RuntimeErrors of many texts: its own, those of the libraries, those of compiled
# kernels. After most of them every further call of the process fails; of the others this is not known.
_ACCELERATOR = re.compile(
    r"\b(?:CUDA|HIP|XPU|NCCL|cu(?:DNN|BLAS|SPARSE|SOLVER|FFT)|MIOpen)(?: driver| kernel| runtime)? error"
    r"|\bCU(?:BLAS|DNN|SPARSE|SOLVER|FFT)_STATUS_|device-side assert|\bTriton Error \[",
    re.IGNORECASE,
)
_OUT_OF_MEMORY = re.compile(
    r"out of memory|DefaultCPUAllocator: (?:can't allocate|not enough) memory|_STATUS_ALLOC_FAILED", re.IGNORECASE
)
_LOWER = "lower training.batch_size or workers.max_concurrent_trials"
_LOWER_ON_ACCELERATOR = (
    f"{_LOWER}, give each trial a larger share of a device by workers.gpus, or compute in training.precision: bf16"
)


def describe_error(error: BaseException) -> str:
    """Return an error as one line.

    If a full disk caused it, this is the error of the disk. If memory ran out, the line says where and what to lower.
    """
    # On a full disk torch raises an error about a wrong position in its archive; the disk's error is its cause.
    if (disk := _cause(error, _is_disk_full)) is not None:
        return _line(disk)
    if (memory := _cause(error, _is_out_of_memory)) is not None:
        device = isinstance(memory, torch.OutOfMemoryError) or _is_of_accelerator(memory)
        where, lower = ("accelerator", _LOWER_ON_ACCELERATOR) if device else ("machine", _LOWER)
        return f"out of memory on the {where}: {lower} ({_line(memory)})"
    if (failed := _cause(error, _is_of_accelerator)) is not None:
        return f"the accelerator failed: {_line(failed)}"
    return _line(error)


def ends_the_process(error: BaseException) -> bool:
    """Whether an error of an accelerator is behind it, after which its process can use the device no more."""
    return _cause(error, _is_of_accelerator) is not None


def _cause(error: BaseException, matches: Callable[[BaseException], bool]) -> BaseException | None:
    return next((each for each in _causes(error) if matches(each)), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_disk_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def _is_of_accelerator(error: BaseException) -> bool:
    # The allocator of the device refuses before anything has gone wrong there.
    if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, torch.AcceleratorError) or _ACCELERATOR.search(str(error)) is not None


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
