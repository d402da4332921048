"""Where people compare a study in MLflow: its prepared pages, as full addresses."""

import json
from collections.abc import Mapping
from urllib.parse import urlsplit

from services.settings import Settings
from services.store import PAGES_TARGET, NotFound, Store

# Where `mlflow ui` listens if it is not told otherwise: for a database, which has no server of its own.
LOCAL = "http://127.0.0.1:5000"


def pages_of(store: Store, study: str) -> dict[str, str]:
    """Return the addresses of the prepared pages of a study relative to that of MLflow, by what they show."""
    try:
        rows = store.projections(study, PAGES_TARGET)
    except NotFound:
        return {}
    return dict(json.loads(rows[0].external_id)) if rows else {}


def full_addresses(settings: Settings, pages: Mapping[str, str]) -> dict[str, str]:
    """Return full addresses of pages: at the address at which people open MLflow, else at that of the tracking server.

    Args:
        settings: Of the installation.
        pages: Addresses relative to that of MLflow.
    """
    base = settings.mlflow_url
    if base is None:
        if settings.tracking_uri is None:
            return {}
        base = _without_password(settings.tracking_uri) if has_server(settings) else LOCAL
    return {name: f"{base}/{address}" for name, address in pages.items()}


def has_server(settings: Settings) -> bool:
    """Whether MLflow is there without being started first: `mlflow ui` shows a database."""
    return bool(settings.mlflow_url) or str(settings.tracking_uri).startswith(("http://", "https://"))


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl().rstrip("/")
