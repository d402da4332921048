"""The application over a real store, and clients of it."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from services.api import application
from services.api.health import Probes
from services.api.requests.submitted_study import checked
from services.api.state import Caching
from services.settings import Settings, SignInSettings
from services.store import Store
from tests.services.identity_provider import CLIENT, SECRET, IdentityProvider, providing
from tests.services.new_store import new_store
from tests.services.serving import NO_TLS, serving, settings_of
from tests.services.tiny import TINY

Client = Callable[..., httpx.Client]


@pytest.fixture
def served() -> Iterator[Callable[[FastAPI], str]]:
    """Serves applications until the test has ended; returns their addresses."""
    with ExitStack() as stack:
        addresses: dict[int, str] = {}

        def serve(app: FastAPI) -> str:
            if id(app) not in addresses:
                addresses[id(app)] = stack.enter_context(serving(app))
            return addresses[id(app)]

        yield serve


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path)


@pytest.fixture
def app(settings: Settings, store: Store) -> FastAPI:
    """The application over an empty store, on every kind of database."""
    return application(settings, store, probes=Probes({"database": lambda: "ok"}))


@pytest.fixture
def client(app: FastAPI, store: Store, served: Callable[[FastAPI], str]) -> Iterator[Client]:
    """Makes a client with a token of an owner, or one without a token."""
    with ExitStack() as stack:

        def make(owner: str | None = "ann", scope: str = "write", *, to: FastAPI = app) -> httpx.Client:
            found = stack.enter_context(httpx.Client(base_url=served(to), timeout=20.0, verify=NO_TLS))
            if owner is not None:
                found.headers["Authorization"] = f"Bearer {store.create_token('', owner=owner, scope=scope)[1]}"
            return found

        yield make


@pytest.fixture
def ann(client: Client) -> httpx.Client:
    return client("ann")


@pytest.fixture
def study() -> dict[str, Any]:
    return {**TINY, "question": "Größer? 漢字"}


@pytest.fixture
def by_hand(store, study, settings) -> dict[str, Any]:
    """A study that was run to its end on the command line, with a failed trial; what was written in its file."""
    document = {**study, "name": "by-hand"}
    resolved = checked(document, settings)
    store.create_study("by-hand", config=resolved.to_json(), config_hash=resolved.hash, arms=list(resolved.arms))
    store.claim_study("by-hand", "driver")
    trial = store.add_trial("by-hand", arm="dense", phase="search", number=0, seed=0, experiment={}, planned=134).id
    store.finish_trial(trial, "failed", reason=f"<b>no room</b> in {settings.home}/runs")
    store.finish_study("by-hand", "complete")
    folder = settings.folder("by-hand")
    folder.mkdir(parents=True)
    (folder / "comparison.json").write_text(json.dumps({"study": "by-hand"}))
    return document


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    with new_store(tmp_path / "runs" / "store.db") as opened:
        yield opened


@pytest.fixture
def limited(settings: Settings, store: Store) -> Callable[..., FastAPI]:
    """Makes the application with other settings."""
    return lambda **changes: application(replace(settings, **changes), store, probes=Probes({}))


@pytest.fixture
def caching(settings: Settings, store: Store) -> Callable[..., FastAPI]:
    """Makes the application with other ages up to which answers are reused."""
    return lambda **changes: application(settings, store, probes=Probes({}), caching=Caching(**changes))


@pytest.fixture
def queries(store: Store) -> Iterator[list[str]]:
    """Every statement that the store sends to its database, as it is sent."""
    sent: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    sa.event.listen(store._database._engine, "before_cursor_execute", note)
    yield sent
    sa.event.remove(store._database._engine, "before_cursor_execute", note)


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    with providing() as found:
        yield found


@pytest.fixture
def signing_in(settings: Settings, store: Store, provider: IdentityProvider) -> Callable[..., FastAPI]:
    """Makes the application with the provider, and with other settings of signing in."""

    def make(seconds: float = 10.0, **changes: object) -> FastAPI:
        values = {"issuer": provider.issuer, "client_id": CLIENT, "client_secret": SECRET, "new_owners": "anyone"}
        found = replace(settings, sign_in=SignInSettings(**{**values, **changes}))  # type: ignore[arg-type]
        return application(found, store, probes=Probes({}), provider_seconds=seconds)

    return make


@pytest.fixture
def browser_of(client: Callable[..., httpx.Client]) -> Callable[[FastAPI], httpx.Client]:
    """Makes a client without a token that asks for pages."""

    def make(app: FastAPI) -> httpx.Client:
        found = client(None, to=app)
        found.headers["Accept"] = "text/html"
        return found

    return make


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem that an answer tells, in the one shape of errors."""
    assert answer.status_code == status, answer.text
    document = answer.json()
    assert set(document) == {"error"}
    found: dict[str, Any] = document["error"]
    assert set(found) == {"code", "message", "key", "value", "remedy", "line", "errors", "unchecked"}
    assert found["code"] == code
    assert found["message"]
    return found


@pytest.fixture
def told() -> Callable[..., dict[str, Any]]:
    return problem
