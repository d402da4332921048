"""Connection to a Ray cluster: whether an address answers, its token, and whether this process is one of its jobs."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

ANSWER_SECONDS = 5.0
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's own name; it sets this in the environment of a job's entrypoint only
_DEFAULT_TOKEN = Path(".ray") / "auth_token"


class ClusterError(RuntimeError):
    """Ray cannot be reached, or is too small for a study."""


def check(address: str) -> None:
    """Check that something listens at an address such as ``ray://host:10001`` or ``host:6379``; ``auto`` always passes.

    Raises:
        ClusterError: Nothing listens there.
    """
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ClusterError(f"Ray cannot be reached at {address}: {error}") from error


def own_cluster(environment: Mapping[str, str] | None = None) -> str | None:
    """Return the address of the cluster whose job this process is, or None outside of jobs.

    Args:
        environment: Variables by name; the environment of the process if left out.
    """
    values = os.environ if environment is None else environment
    return values.get("RAY_ADDRESS") or None if _JOB in values else None


def token(environment: Mapping[str, str] | None = None) -> str | None:
    """Return the token of the cluster, from where Ray itself looks for it; None if there is none.

    Args:
        environment: Variables by name; the environment of the process if left out.

    Raises:
        ClusterError: The file that ``RAY_AUTH_TOKEN_PATH`` names cannot be read.
    """
    values = os.environ if environment is None else environment
    if values.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if secret := values.get("RAY_AUTH_TOKEN", "").strip():
        return secret
    named = values.get("RAY_AUTH_TOKEN_PATH", "").strip()
    path = Path(named) if named else Path.home() / _DEFAULT_TOKEN
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        if named:
            raise ClusterError(f"RAY_AUTH_TOKEN_PATH must name the file of Ray's token, got {path}: {error}") from None
        return None
