"""Secrets from files: for a variable ``NAME``, ``NAME_FILE`` may name a file that holds its value.

Orchestrators mount secrets as files: unlike the environment, a file is not inherited by every process that is started,
and is not shown where a container or job is described.
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path

SUFFIX = "_FILE"
MLFLOW = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_MOST_BYTES = 65_536


class SecretFileError(ValueError):
    """A file that is to hold a secret cannot be read: the message has the variable, the reason and a remedy."""


def with_files(values: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """Return variables with the values of those that are given as files.

    Args:
        values: Variables by name.
        names: Those for which a file may be named.

    Raises:
        SecretFileError: A file cannot be read, or a variable is given in both ways.
    """
    found = dict(values)
    for name in names:
        path = found.pop(name + SUFFIX, "").strip()
        if not path:
            continue
        if found.get(name, "").strip():
            raise SecretFileError(f"{name} and {name}{SUFFIX} are both set; keep one of them")
        found[name] = _content(name + SUFFIX, Path(path))
    return found


def secret(name: str) -> str | None:
    """Return a secret of another program from its file or else its variable, or None.

    Raises:
        SecretFileError: The file cannot be read.
    """
    path = os.environ.get(name + SUFFIX, "").strip()
    return _content(name + SUFFIX, Path(path)) if path else os.environ.get(name)


def _content(variable: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        text = content.decode("utf-8")
    except OSError as error:
        raise SecretFileError(f"{variable}: {path} cannot be read: {error.strerror}; name a readable file") from None
    except UnicodeDecodeError:
        raise SecretFileError(f"{variable}: {path} must be text in UTF-8; write the value alone into it") from None
    if len(content) > _MOST_BYTES:
        raise SecretFileError(f"{variable}: {path} has more than {_MOST_BYTES} bytes; write the value alone into it")
    return text.strip()  # editors and `echo` end a file with a line break
