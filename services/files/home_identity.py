"""The identity of the place of all studies' files, by which a job knows that it writes where the service reads."""

import hashlib
import os
import uuid
from contextlib import suppress
from pathlib import Path

from services.settings import Settings, SettingsError

_FILE = ".identity"
_DIGITS = 16


def place_identity(settings: Settings, *, create: bool = False) -> str | None:
    """Return what identifies the place of all studies' files, the same on every machine that shares it.

    Shared storage is known by its URL, and the home folder may then be another one on each machine. Without it the
    home folder is the place: a path would not do, since each container may have another folder there, so that a file
    in it holds a UUID.

    Args:
        settings: Settings of the installation.
        create: Whether to give the home folder an identity if it has none.

    Returns:
        The identity; None if there is none and none is to be made.

    Raises:
        SettingsError: The file cannot be read or written.
    """
    if settings.artifacts is not None:
        return "storage-" + hashlib.sha256(settings.artifacts.encode()).hexdigest()[:_DIGITS]
    path = settings.runs / _FILE
    try:
        if create and not path.exists():
            _create(path)
        return path.read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"NAS_BLOCKOUT_HOME must be a folder whose file runs/{_FILE} can be read and, by the service's worker, "
            f"written, got {error}"
        ) from None


def _create(path: Path) -> None:
    """Write a file with a new UUID, unless another process is faster; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}-{uuid.uuid4().hex}")
    try:
        part.write_text(f"{uuid.uuid4()}\n", encoding="ascii")
        with suppress(FileExistsError):
            os.link(part, path)  # unlike a rename it never replaces a file that is there
    finally:
        part.unlink(missing_ok=True)
