"""Code by its name: imported from a package or a file, and every failure told at its line."""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from nas_blockout.serialization import near
from nas_blockout.settings_fields import Conflict

FORM = r"([^\W\d]\w*(\.[^\W\d]\w*)*|[^\x00\r\n]+\.py):[^\W\d]\w*"
FORM_SHOWN = "'package.module:name' or 'path/to/file.py:name'"
_OURS = f"{Path(__file__).parents[1]}/"


def file_of(name: str) -> Path | None:
    """Return the file that named code is in, or None for what is imported from a package.

    Args:
        name: ``package.module:name`` or ``path/to/file.py:name``.
    """
    module = name.rpartition(":")[0]
    return Path(module).expanduser() if module.endswith(".py") else None


def load_named(name: str, *, key: str) -> Any:
    """Import code by its name.

    Args:
        name: ``package.module:name`` or ``path/to/file.py:name``.
        key: Setting that has the name, for errors.

    Raises:
        Conflict: The module cannot be imported, or has no such name.
    """
    place, _, attribute = name.rpartition(":")
    file = file_of(name)
    if file is not None and not file.is_file():
        raise Conflict(f"{key}: there is no file {place}", key)
    try:
        module = _imported(place, file)
    except (Exception, SystemExit) as error:
        raise Conflict(f"{key}: cannot import {place}: {told(error)}", key) from error
    if not hasattr(module, attribute):
        public = [each for each in vars(module) if not each.startswith("_") and callable(getattr(module, each))]
        known = near(attribute, public) if public else "nothing in it can be called"
        raise Conflict(f"{key}: {place} has no {attribute!r}; {known}", key)
    return getattr(module, attribute)


def name_of_module(file: Path) -> str:
    """Return the name by which the module in a file is known as long as the file stays the same."""
    path, status = file.resolve(), file.stat()
    version = f"{path}:{status.st_mtime_ns}:{status.st_size}"
    return f"nas_blockout_factory_{hashlib.sha256(version.encode()).hexdigest()[:16]}"


def told(error: BaseException) -> str:
    """Return an error in one line: its type, the line of the user's code that caused it, and its message."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{_at(error)}{f': {text}' if text else ''}"


@contextmanager
def beside(file: Path | None) -> Iterator[None]:
    """Let a file import the modules beside it; they come last, so that they hide no installed package."""
    folder = None if file is None else str(file.resolve().parent)
    if folder is None or folder in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _at(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_the_users(frame.filename)]
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _is_the_users(file: str) -> bool:
    # Frames of PyTorch and of ours raise errors that they do not cause: what counts is the line that called them.
    torch = getattr(sys.modules.get("torch"), "__file__", None)
    others = ("<", _OURS, *([f"{Path(torch).parent}/"] if torch else []))
    return not file.startswith(others) and Path(file).parent.name != "importlib"


def _imported(place: str, file: Path | None) -> ModuleType:
    with beside(file):
        try:
            return importlib.import_module(place) if file is None else _module_in(file)
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
            _import_torchvision()
        return importlib.import_module(place) if file is None else _module_in(file)


def _import_torchvision() -> None:
    """Import torchvision through its door after it has failed on its own, wherever it was asked for."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # the half that the failed import has left
    importlib.import_module("nas_blockout.lazy_torchvision")


def _module_in(file: Path) -> ModuleType:
    """Return the module in a file, which runs once a process as long as the file stays the same."""
    name = name_of_module(file)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as `import` does: dataclasses and pickle look for it there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
