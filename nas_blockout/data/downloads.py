"""Files of data sets: read whole or refused, written whole or not at all, and never a pickle."""

import gzip
import hashlib
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas_blockout.atomic_files import whole_folder
from nas_blockout.data.errors import DataCorrupt, DataMissing

Arrays = dict[str, NDArray[Any]]
_TIMEOUT_SECONDS = 60


def read_bytes(path: Path) -> bytes:
    """Read a file, unpacking it where its name ends in `.gz`.

    Raises:
        DataCorrupt: The file is truncated or no gzip file.
    """
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise DataCorrupt(f"{path} must be a whole gzip file, got: {error}; delete it and fetch it again") from error


def require_md5(data: bytes, md5: str, path: Path) -> bytes:
    """Return the data if its MD5 is the expected one.

    Raises:
        DataCorrupt: They differ; the message shows both.
    """
    actual = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if actual != md5:
        raise DataCorrupt(
            f"the content of {path} must have MD5 {md5}, got {actual} ({len(data)} bytes); delete it and fetch it again"
        )
    return data


def download(url: str, path: Path) -> bytes:
    """Download a file and return its content; the caller stores it at `path`, which the error message names.

    Raises:
        DataMissing: The address cannot be reached; the message names it and the reason.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310  # constants of ours
            data: bytes = response.read()
            return data
    except OSError as error:
        raise DataMissing(
            f"{url} could not be downloaded: {error}; check the network, or bring the file to {path} by other means"
        ) from error


def cached(root: Path | None, key: str, make: Callable[[], Arrays]) -> Arrays:
    """Return named arrays from `root/cache/key`, made and stored first where they are not there yet.

    Two processes that make the same arrays at once do not disturb each other: the first one's are kept.

    Args:
        root: Folder of downloads and caches; None to make the arrays each time.
        key: Name of the arrays, with a hash of everything that they depend on.
        make: Makes the arrays.

    Raises:
        DataCorrupt: A stored array cannot be read.
    """
    if root is None:
        return make()
    folder = root / "cache" / key
    if not folder.is_dir():
        arrays = make()
        # Another process may have stored the same arrays meanwhile; the key contains all that they depend on.
        with whole_folder(folder, keep_existing=True) as part:
            for name, array in arrays.items():
                np.save(part / f"{name}.npy", array, allow_pickle=False)
    try:
        return {path.stem: np.load(path, allow_pickle=False) for path in sorted(folder.glob("*.npy"))}
    except (ValueError, EOFError, OSError) as error:
        raise DataCorrupt(f"the arrays in {folder} must be readable, got: {error}; delete that folder") from error


def digest(parts: Mapping[str, bytes]) -> str:
    """Return a short hash of named pieces of content; their order does not matter, their names do."""
    total = hashlib.sha256()
    for name in sorted(parts):
        # With lengths: otherwise bytes could move from one piece to the next without changing the hash.
        total.update(f"{name}:{len(parts[name])}:".encode() + parts[name])
    return total.hexdigest()[:20]
