"""The connection to a tracking server or database, and what its errors mean."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from services.settings import masked
from services.store import StoreError

ERROR_CHARACTERS = 300
_ENVIRONMENT = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # no waiting for a server that is away: the next round tries again
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "GIT_PYTHON_REFRESH": "quiet",
}


class TrackingError(RuntimeError):
    """The tracking server cannot be reached; training goes on, and ``nas-blockout sync`` catches up."""


def check(uri: str) -> str:
    """Return a summary of a tracking server or database.

    Raises:
        TrackingError: It does not answer.
    """
    client = connect(uri)
    with translated(uri):
        return f"experiments: {len(client.search_experiments(max_results=1000))}"


def connect(uri: str) -> Any:
    """Return a client that logs only errors and loads no pickles."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import mlflow

    with translated(uri):
        client = mlflow.MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
        return client


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Turn any error of server, database or network into a `TrackingError`."""
    try:
        yield
    except StoreError as error:
        raise TrackingError(str(error)) from None
    except Exception as error:  # noqa: BLE001  # MLflow lets errors of many libraries through, and none may stop training
        raise TrackingError(f"MLflow does not answer at {masked(uri)}: {_without_secret(str(error), uri)}") from None


def _without_secret(text: str, uri: str) -> str:
    """Return an error message on one line, with passwords masked in case it quotes the URI."""
    shown = text.replace(uri, masked(uri))
    try:
        password = urlsplit(uri).password
    except ValueError:
        password = None
    return " ".join((shown.replace(password, "***") if password else shown).split())[:ERROR_CHARACTERS]
