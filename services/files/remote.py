"""Files that several machines share, on any storage that fsspec supports. A file is visible whole or not at all.

A place is a local path or a URL such as ``s3://bucket/prefix/file``. Credentials and endpoints are read from where the
storage's own library looks for them (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...), never from a URL.
"""

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from nas_blockout.atomic_files import whole_file, whole_folder

# An object of these is visible once all of it has arrived; elsewhere a file is written beside its place and renamed.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
_EXTRAS = {"s3": "s3", "s3a": "s3"}


class ArtifactError(RuntimeError):
    """Shared storage cannot be reached, or refuses the request."""


def is_remote(place: str) -> bool:
    """Whether a place is a URL."""
    return "://" in place


def place_of(path: Path, root: Path, shared: str | None) -> str:
    """Return the place of a file of a study.

    Args:
        path: The file below the study's folder.
        root: The study's folder.
        shared: URL of the study's folder on shared storage; None for a local study.
    """
    return f"{shared}/{path.relative_to(root).as_posix()}" if shared is not None else str(path.absolute())


@contextmanager
def reading(place: str) -> Iterator[Path]:
    """Yield a local file with the content of a place; it does not exist if there is nothing at the place.

    Raises:
        ArtifactError: The storage cannot be reached.
    """
    if not is_remote(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="nas-blockout-") as folder:
        path = Path(folder) / PurePosixPath(place).name
        fetch(place, path)
        yield path


@contextmanager
def writing(place: str) -> Iterator[Path]:
    """Yield a local path to write to, and copy the file to its place at the end, unless the block fails.

    Raises:
        ArtifactError: The storage cannot be reached, or does not take the file.
    """
    if not is_remote(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="nas-blockout-") as folder:
        path = Path(folder) / PurePosixPath(place).name
        yield path
        put(path, place)


def put(path: Path, url: str) -> None:
    """Copy a local file to a URL, where it appears whole or not at all.

    Raises:
        ArtifactError: The storage cannot be reached, or does not take the file.
    """
    with explained(url):
        storage, target = fsspec.url_to_fs(url)
        if _scheme(url) in _OBJECT_STORES:
            storage.put_file(str(path), target)
            return
        # A random name: of two workers that write the same file, the last to rename wins, with a whole file.
        part = f"{target}.{uuid.uuid4().hex[:8]}.part"
        storage.makedirs(storage._parent(target), exist_ok=True)
        try:
            storage.put_file(str(path), part)
            storage.mv(part, target)
        except BaseException:
            if storage.exists(part):
                storage.rm_file(part)
            raise


def fetch(url: str, path: Path) -> bool:
    """Copy the content of a URL to a local file, which appears whole or not at all; return whether there was any.

    Raises:
        ArtifactError: The storage cannot be reached.
    """
    with explained(url):
        storage, source = fsspec.url_to_fs(url)
        try:  # asked by reading, not by looking first: another machine may remove the file in between
            with whole_file(path) as part:
                storage.get_file(source, str(part))
        except FileNotFoundError:
            return False
    return True


def remove(place: str) -> None:
    """Remove the file at a place, if there is one.

    Raises:
        ArtifactError: The storage cannot be reached, or does not remove the file.
    """
    if not is_remote(place):
        Path(place).unlink(missing_ok=True)
        return
    with explained(place):
        storage, target = fsspec.url_to_fs(place)
        try:
            storage.rm_file(target)
        except FileNotFoundError:
            return


def remove_folder(url: str) -> None:
    """Remove all files at a URL; does nothing if there are none.

    Raises:
        ArtifactError: The storage cannot be reached, or does not remove a file.
    """
    with explained(url):
        storage, target = fsspec.url_to_fs(url)
        storage.invalidate_cache()  # its listing may be older than what another machine has written
        if storage.exists(target):
            storage.rm(target, recursive=True)


def put_folder(folder: Path, url: str, *, last: str) -> None:
    """Copy the files of a folder to a URL, one of them last; names that begin with a dot are left out.

    Args:
        folder: The folder.
        url: Prefix of the copies, which keep their names relative to the folder.
        last: Name of the file that is copied after all others, so that its presence means that they are complete.

    Raises:
        ArtifactError: The storage cannot be reached, or does not take a file.
    """
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    shown = [path for path in files if not any(part.startswith(".") for part in path.parts)]
    for path in sorted(shown, key=lambda path: path.as_posix() == last):
        put(folder / path, f"{url}/{path.as_posix()}")


def fetch_folder(url: str, folder: Path) -> bool:
    """Copy the files at a URL that `put_folder` wrote to a new folder; return whether there were any.

    Raises:
        ArtifactError: The storage cannot be reached.
    """
    with explained(url):
        storage, source = fsspec.url_to_fs(url)
        storage.invalidate_cache()  # its listing may be older than what another machine has written
        names = [name.removeprefix(source).lstrip("/") for name in storage.find(source)]
    shown = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    if not shown:
        return False
    with whole_folder(folder, keep_existing=True) as part:
        for name in shown:
            fetch(f"{url}/{name}", part / name)
    return True


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn the errors of every storage into one that names the URL."""
    try:
        yield
    except ArtifactError:
        raise
    except ImportError as error:
        extra = _EXTRAS.get(_scheme(url))
        remedy = f"pip install 'nas-blockout[{extra}]'" if extra else str(error)
        raise ArtifactError(f"{url}: {_scheme(url)}:// needs a library that is not installed: {remedy}") from error
    except Exception as error:  # each storage raises errors of its own
        raise ArtifactError(f"shared storage {url}: {_reason(error)}; is NAS_BLOCKOUT_ARTIFACTS right?") from error


def _reason(error: Any) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
