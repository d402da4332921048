"""Accelerators: which there are, what drives them, how much of one a training uses; and the memory of a process.

Everything here answers without one too, and starts no CUDA context where it need not: a process that only asks must
not hold several hundred megabytes of a card.
"""

import ctypes
import resource
import shutil
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

SHARING_PIPES = "/tmp/nvidia-mps"  # noqa: S108  # the default of NVIDIA's service
_QUERY = ("--query-gpu=index,name,memory.total,driver_version", "--format=csv,noheader,nounits")
_UTILIZATION = ("--query-gpu=utilization.gpu", "--format=csv,noheader,nounits")
_TIMEOUT_SECONDS = 10.0
_SAMPLE_SECONDS = 5.0  # nvidia-smi itself averages over up to a second; more often would cost a processor something
_MIB = 1 << 20
# Of mallopt in the C library of GNU: from which size on a piece is asked of the system by itself and given back when it
# is freed, and how much may be free at the end of the heap before that is given back.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Card:
    """An accelerator of this machine, as its driver reports it.

    Args:
        index: Number that the driver gives it.
        name: Of the model, such as ``NVIDIA H100 80GB HBM3``.
        memory_bytes: Its memory.
        driver: Version of the driver.
    """

    index: int
    name: str
    memory_bytes: int
    driver: str


def cards() -> list[Card]:
    """Return the NVIDIA cards of this machine; none where there is no driver, or it does not answer."""
    found = []
    for line in _ask(*_QUERY).splitlines():
        index, name, memory, driver = (part.strip() for part in line.split(",", 3))
        with suppress(ValueError):  # a card that has fallen off the bus reports words in place of numbers
            found.append(Card(int(index), name, int(memory) * _MIB, driver))
    return found


def sharing_service(pipes: str | Path = SHARING_PIPES) -> bool:
    """Return whether NVIDIA's Multi-Process Service runs, by which processes share a card without taking turns.

    Args:
        pipes: Its folder of pipes: what ``CUDA_MPS_PIPE_DIRECTORY`` says, else NVIDIA's own.
    """
    return Path(pipes, "control").exists()


def name_of(device: str | torch.device) -> str:
    """Return the name of a device: of the card's model, or the type where there is no card."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    return device.type


@dataclass(slots=True)
class Usage:
    """What a training used.

    Args:
        device: Name of the device, see `name_of`.
        device_bytes: Most memory that tensors held on the accelerator at one time; None without one.
        host_bytes: Most memory that the process has held so far, what it did before included.
        utilization: Mean share in [0, 1] of the time in which the accelerator computed, for whichever process; None
            without one, or where the training was shorter than a sample.
    """

    device: str
    device_bytes: int | None = None
    host_bytes: int = 0
    utilization: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the usage as plain JSON types."""
        return {name: getattr(self, name) for name in self.__slots__}


class UsageMeter:
    """Measures what is used on a device from now on, until `read` or `stop`.

    Args:
        device: Device of the training.
        sample_seconds: Time between two samples of the utilization.
    """

    def __init__(self, device: str | torch.device, *, sample_seconds: float = _SAMPLE_SECONDS) -> None:
        self._device = torch.device(device)
        self._samples: list[float] = []
        self._ended = threading.Event()
        self._seconds = sample_seconds
        self._thread: threading.Thread | None = None
        if self._device.type == "cuda" and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats(self._device)
            self._thread = threading.Thread(target=self._sample, name="utilization", daemon=True)
            self._thread.start()

    def read(self) -> Usage:
        """Return what was used so far."""
        usage = Usage(name_of(self._device), host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        if self._device.type == "cuda" and torch.cuda.is_available():
            usage.device_bytes = torch.cuda.max_memory_allocated(self._device)
            usage.utilization = fmean(self._samples) if self._samples else None
        return usage

    def stop(self) -> None:
        """End the sampling; the meter can still be read."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _sample(self) -> None:
        identifier = str(torch.cuda.get_device_properties(self._device).uuid)
        while not self._ended.wait(self._seconds):
            with suppress(ValueError):
                self._samples.append(float(_ask(f"--id=GPU-{identifier.removeprefix('GPU-')}", *_UTILIZATION)) / 100)


def _ask(*arguments: str) -> str:
    """Return what nvidia-smi answers, empty where it cannot be asked."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    try:
        # Its own answers, not a user's words: the arguments are the constants above and a card's identifier.
        answer = subprocess.run(  # noqa: S603
            [command, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def keep_freed_memory() -> bool:
    """Let this process use memory again that it has freed, instead of giving it back to the system.

    Each step of a training makes the same tensors. The allocator of the GNU C library gives memory of some megabytes
    back as soon as it is freed, so that every step gets it anew, page by page; for a network whose weights are masked
    that can take a tenth of the step. What a process has used at most it then keeps until it ends.

    Returns:
        Whether the C library knows how; another one is left as it is.
    """
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        return bool(library.mallopt(_MMAP_THRESHOLD, _MOST)) & bool(library.mallopt(_TRIM_THRESHOLD, _MOST))
    return False
