"""Decoded images in one memory-mapped file that all trials of a machine share, written whole or not at all.

What is in memory of it, and for how long, is the system's choice: a file that fits is read from the disk once.
"""

import errno
import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nas_blockout.atomic_files import whole_folder
from nas_blockout.data.errors import DataCorrupt, DataUnsuitable, all_corrupt

Pixels = NDArray[np.uint8]  # (height, width, 3)
Decode = Callable[[Path], Pixels]
_AT_ONCE = 256  # decoded before they are written, so that no more are in memory
_MEASURED = 64  # of these follows how much space all will take
_FULL = (errno.ENOSPC, errno.EDQUOT)
_GIGABYTE = 1e9


class CachedImages:
    """Decoded images of one folder of the cache, read from the file when they are indexed.

    Args:
        folder: As `cached_images` wrote it.
        index: Numbers in the folder of the images, shape (n,), int64; None for all in their order.

    Raises:
        DataCorrupt: The folder is incomplete; the message says to delete it.
    """

    def __init__(self, folder: Path, index: Tensor | None = None) -> None:
        self.folder = folder
        self.index = index
        try:
            self._sizes = np.load(folder / "sizes.npy", allow_pickle=False)
            self._ends = (self._sizes.prod(1, dtype=np.int64) * 3).cumsum()
            self._pixels = np.memmap(folder / "pixels.bin", dtype=np.uint8, mode="r")
            if len(self._pixels) != self._ends[-1]:
                raise ValueError(f"pixels.bin must have {self._ends[-1]} bytes, got {len(self._pixels)}")
        except (ValueError, EOFError, OSError) as error:
            raise DataCorrupt(f"the images in {folder} must be readable, got: {error}; delete that folder") from error

    def __reduce__(self) -> tuple[type["CachedImages"], tuple[Path, Tensor | None]]:
        """Travel to another process as the name of the folder: the pixels of a file in memory would be copied."""
        return CachedImages, (self.folder, self.index)

    def __len__(self) -> int:
        return len(self._sizes if self.index is None else self.index)

    def at(self, index: Tensor) -> "CachedImages":
        """Return some of the images, by their numbers, shape (m,), int64."""
        return CachedImages(self.folder, index if self.index is None else self.index[index])

    def __getitem__(self, number: int) -> Pixels:
        """Return an image, shape (height, width, 3); a view of the file."""
        row = number if self.index is None else int(self.index[number])
        (height, width), end = self._sizes[row], self._ends[row]
        pixels: Pixels = self._pixels[end - height * width * 3 : end].reshape(height, width, 3)
        return pixels


def cached_images(folder: Path, paths: Sequence[Path], decode: Decode, *, threads: int = 1) -> CachedImages:
    """Return decoded images from a folder, written first if it is not there.

    Of several processes one writes, and the others wait for it.

    Args:
        folder: Its name depends on all that the images depend on.
        paths: Files, in the order of the numbers of the images.
        decode: Returns the pixels of a file.
        threads: That decode at the same time.

    Raises:
        DataCorrupt: Files cannot be read; the message names the first of them and counts all.
        DataUnsuitable: The disk has no space for all images; nothing is left behind.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        with _alone(folder):
            if not folder.is_dir():
                _write(folder, paths, decode, threads)
    return CachedImages(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time pass; the system frees the lock of one that dies."""
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(folder: Path, paths: Sequence[Path], decode: Decode, threads: int) -> None:
    problems: list[str] = []
    sizes: list[tuple[int, ...]] = []
    _require_space(folder, paths, decode)
    with ThreadPoolExecutor(threads) as pool:  # threads: Pillow releases the interpreter lock while it decodes
        try:
            with whole_folder(folder) as part:
                with (part / "pixels.bin").open("wb") as file:
                    for start in range(0, len(paths), _AT_ONCE):
                        for found in pool.map(lambda path: _or_problem(decode, path), paths[start : start + _AT_ONCE]):
                            if isinstance(found, str):
                                problems.append(found)
                            elif not problems:
                                file.write(found.tobytes())
                                sizes.append(found.shape[:2])
                if problems:
                    raise all_corrupt(problems)
                np.save(part / "sizes.npy", np.array(sizes, dtype=np.int32), allow_pickle=False)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise _no_space(folder, len(paths), needed=None) from error


def _require_space(folder: Path, paths: Sequence[Path], decode: Decode) -> None:
    found = [_or_problem(decode, path) for path in paths[:: max(1, len(paths) // _MEASURED)]]
    bytes_of = [pixels.nbytes for pixels in found if not isinstance(pixels, str)]
    needed = sum(bytes_of) / max(1, len(bytes_of)) * len(paths)
    if needed > shutil.disk_usage(folder.parent).free:
        raise _no_space(folder, len(paths), needed=needed)


def _no_space(folder: Path, images: int, *, needed: float | None) -> DataUnsuitable:
    free = shutil.disk_usage(folder.parent).free / _GIGABYTE
    takes = "more than that" if needed is None else f"about {needed / _GIGABYTE:.1f} GB"
    return DataUnsuitable(
        f"the disk that holds {folder.parent} must have space for {images} decoded images, got {free:.1f} GB free for "
        f"{takes}; free some, use another data root, or set workers.image_cache: none"
    )


def _or_problem(decode: Decode, path: Path) -> Pixels | str:
    try:
        return decode(path)
    except DataCorrupt as error:
        return str(error)
