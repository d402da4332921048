"""The connection to a tracking server or database, and what its errors mean."""

import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from services import secret_files
from services.settings import masked
from services.store import LockTimeout, StoreError, StoreUnreachable

PROGRAM = "nas-blockout"
ERROR_CHARACTERS = 300
_REFUSALS = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"})
_GATEWAY = re.compile(r"failed with error code 50[234]\b")  # from a proxy whose server is away
_CREDENTIALS = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to those of a user who may "
    "write there"
)
_HOSTS = "start the server with --allowed-hosts and the name by which it is called"
_ENVIRONMENT = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # no waiting for a server that is away: the next round tries again
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # for each run of a server: standard output is for results
    "GIT_PYTHON_REFRESH": "quiet",
}
_IMPORTING = threading.Lock()


class TrackingError(RuntimeError):
    """MLflow has not been written; training goes on, and ``nas-blockout sync`` catches up. The message says why."""


class TrackingUnreachable(TrackingError):
    """MLflow, or the store that it is written from, does not answer."""


class TrackingBusy(TrackingError):
    """Another process is writing the study to MLflow."""


def check(uri: str) -> str:
    """Return a summary of a tracking server or database.

    Raises:
        TrackingError: It does not answer, or refuses.
    """
    client = connect(uri)
    with translated(uri):
        return f"experiments: {len(client.search_experiments(max_results=1000))}"


def import_mlflow() -> None:
    """Import MLflow with its settings, which it reads then: no telemetry, few retries, quiet.

    What an import that failed half-way has left is removed, and it is tried once more.

    Two threads that import the same modules in another order may each see one half-made. The parts of MLflow that were
    imported until then stay known to Python without being attributes of their package, so that no later import works.
    """
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    with _IMPORTING:
        try:
            import_module("mlflow.data.code_dataset_source")
        except (ImportError, AttributeError):
            for name in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
                del sys.modules[name]
            import_module("mlflow.data.code_dataset_source")


def connect(uri: str) -> Any:
    """Return a client that logs only errors and loads no pickles."""
    for name in secret_files.MLFLOW:  # which MLflow reads only from the environment; anew, since files are replaced
        if given := _credential(name):
            os.environ[name] = given
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import_mlflow()
    import mlflow
    from mlflow.utils import requirements_utils

    # It looks through all installed packages with the first model, for a warning that is not shown.
    requirements_utils._check_requirement_satisfied = lambda requirement: None  # type: ignore[assignment]
    with translated(uri):
        client = mlflow.MlflowClient(tracking_uri=as_mlflow_reads(uri))
        client.search_experiments(max_results=1)
        return client


def source_tags() -> dict[str, str]:
    """Return who writes, with which program and of which commit, as MLflow's own logging tells it of every run."""
    from mlflow.tracking.context import registry

    return {**registry.resolve_tags(), "mlflow.source.name": PROGRAM}


def as_mlflow_reads(uri: str) -> str:
    """Return a tracking URI in the form in which MLflow finds the folder of a SQLite file whose name is encoded.

    Of a URL that begins with ``sqlite:///`` it makes the folder without decoding it: another one beside the home.
    """
    return uri.replace("sqlite:", "sqlite+pysqlite:", 1) if uri.startswith("sqlite:///") and "%" in uri else uri


def _credential(name: str) -> str | None:
    try:
        return secret_files.secret(name)
    except secret_files.SecretFileError as error:
        raise TrackingError(str(error)) from None


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Turn any error of server, database, network or store into a `TrackingError` that says what it is."""
    try:
        yield
    except TrackingError:
        raise
    except StoreUnreachable as error:
        raise TrackingUnreachable(str(error)) from None
    except LockTimeout as error:
        raise TrackingBusy(str(error)) from None
    except StoreError as error:
        raise TrackingError(str(error)) from None
    except Exception as error:  # noqa: BLE001  # MLflow lets errors of many libraries through, and none may stop training
        raise _explained(error, uri) from None


def _explained(error: Exception, uri: str) -> TrackingError:
    from mlflow.exceptions import MlflowException

    place, text = masked(uri), _without_secret(str(error), uri)
    code = error.error_code if isinstance(error, MlflowException) else ""
    if code == "TEMPORARILY_UNAVAILABLE" or _GATEWAY.search(text) or any(map(_is_of_network, _causes(error))):
        return TrackingUnreachable(f"MLflow does not answer at {place}: {text}")
    if code in _REFUSALS:
        remedy = _HOSTS if "host header" in text.lower() else _CREDENTIALS
        return TrackingError(f"MLflow at {place} refuses access: {text}; {remedy}")
    if isinstance(error, OSError):
        return TrackingError(f"files for MLflow at {place} cannot be read or written: {text}")
    if uri.startswith("sqlite:") and not code:
        return TrackingError(f"MLflow's database {place} cannot be used: {text}")
    kind = "" if code else f"{type(error).__name__}: "
    return TrackingError(f"MLflow at {place} did not do what it was asked: {kind}{text}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_of_network(error: BaseException) -> bool:
    """Whether an error says that nobody is there, or that the way is broken."""
    library = type(error).__module__.partition(".")[0]
    if library in {"requests", "urllib3"}:
        return type(error).__name__ not in {"InvalidURL", "InvalidSchema", "MissingSchema"}
    of_database = library in {"psycopg", "psycopg2", "pymysql"} and type(error).__name__ == "OperationalError"
    return of_database or isinstance(error, ConnectionError | TimeoutError)


def _without_secret(text: str, uri: str) -> str:
    """Return an error message on one line, with passwords masked in case it quotes the URI."""
    shown = text.replace(uri, masked(uri))
    try:
        password = urlsplit(uri).password
    except ValueError:
        password = None
    return " ".join((shown.replace(password, "***") if password else shown).split())[:ERROR_CHARACTERS]
