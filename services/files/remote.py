"""Files that several machines share: on any storage that fsspec knows, and there whole or not at all.

A place is a path of this machine or a URL such as ``s3://bucket/prefix/file``. Credentials and endpoints come from
where the storage's own library looks for them (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ...), never from a URL.
"""

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from nas_blockout.atomic_files import whole_file, whole_folder

# Of these an object appears when all of it has arrived; elsewhere a file is written beside its place, then renamed.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
_EXTRAS = {"s3": "s3", "s3a": "s3"}


class ArtifactError(RuntimeError):
    """Shared storage cannot be reached, or refuses what is asked of it."""


def is_remote(place: str) -> bool:
    """Whether a place is a URL."""
    return "://" in place


def place_of(path: Path, root: Path, shared: str | None) -> str:
    """Return where a file of a study lies.

    Args:
        path: The file below the study's folder.
        root: The study's folder.
        shared: URL of the study's folder on shared storage, or None if this machine's is all there is.
    """
    return f"{shared}/{path.relative_to(root).as_posix()}" if shared is not None else str(path.absolute())


@contextmanager
def reading(place: str) -> Iterator[Path]:
    """Yield a file of this machine with what lies at a place; it does not exist if nothing does.

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
    """Yield a path of this machine to write to; what is there at the end lies at the place, unless the block failed.

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
    """Copy a file to a URL, where it appears whole or not at all.

    Raises:
        ArtifactError: The storage cannot be reached, or does not take the file.
    """
    with _explained(url):
        storage, target = fsspec.url_to_fs(url)
        if _scheme(url) in _OBJECT_STORES:
            storage.put_file(str(path), target)
            return
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
    """Copy what lies at a URL to a file, which appears whole or not at all; return whether there was anything.

    Raises:
        ArtifactError: The storage cannot be reached.
    """
    with _explained(url):
        storage, source = fsspec.url_to_fs(url)
        try:
            with whole_file(path) as part:
                storage.get_file(source, str(part))
        except FileNotFoundError:
            return False
    return True


def remove(place: str) -> None:
    """Remove a file, if it is there.

    Raises:
        ArtifactError: The storage cannot be reached, or does not let it go.
    """
    if not is_remote(place):
        Path(place).unlink(missing_ok=True)
        return
    with _explained(place):
        storage, target = fsspec.url_to_fs(place)
        try:
            storage.rm_file(target)
        except FileNotFoundError:
            return


def put_folder(folder: Path, url: str, *, last: str) -> None:
    """Copy the files below a folder to a URL, one of them at the end; what begins with a dot stays here.

    Args:
        folder: The folder.
        url: Where its files go, under the names that they have below it.
        last: Name of the file whose presence says that the others are there.

    Raises:
        ArtifactError: The storage cannot be reached, or does not take a file.
    """
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    shown = [path for path in files if not any(part.startswith(".") for part in path.parts)]
    for path in sorted(shown, key=lambda path: path.as_posix() == last):
        put(folder / path, f"{url}/{path.as_posix()}")


def fetch_folder(url: str, folder: Path) -> bool:
    """Copy what `put_folder` left at a URL to a folder that does not exist yet; return whether there was anything.

    Raises:
        ArtifactError: The storage cannot be reached.
    """
    with _explained(url):
        storage, source = fsspec.url_to_fs(url)
        storage.invalidate_cache()
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
def _explained(url: str) -> Iterator[None]:
    """Turn what the many storages raise into one error that names the URL."""
    try:
        yield
    except ArtifactError:
        raise
    except ImportError as error:
        extra = _EXTRAS.get(_scheme(url))
        remedy = f"pip install 'nas-blockout[{extra}]'" if extra else str(error)
        raise ArtifactError(f"{url}: {_scheme(url)}:// needs a library that is not installed: {remedy}") from error
    except Exception as error:  # each storage has errors of its own
        raise ArtifactError(f"shared storage {url}: {_reason(error)}; is NAS_BLOCKOUT_ARTIFACTS right?") from error


def _reason(error: Any) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
