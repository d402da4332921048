"""The application: its routes, its OpenAPI description, and the server that runs it."""

import gc
import logging
import resource
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

import httpx
import uvicorn
from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response

from nas_blockout import __version__
from nas_blockout.plugins.choices import allowing
from services.api import errors, health, metrics, studies, study_files, web
from services.api.administration import audit_routes, deletion_routes, queue_routes, team_routes, token_routes
from services.api.health import Probes, probes_of
from services.api.pages import queue_page, study_page, submission, token_page
from services.api.requests.connections import BoundedProtocol, Room
from services.api.requests.middleware import MAX_REQUESTS, Guard
from services.api.requests.rate_limit import MAX_STREAMS
from services.api.schemas import Changes
from services.api.sign_in import sign_in_routes
from services.api.sign_in.provider import SECONDS as PROVIDER_SECONDS
from services.api.state import Caching, make_service, service_of
from services.settings import Settings
from services.store import Store, StoreError
from services.study_config.schema import StudyConfig, json_schema
from services.study_config.settings_models import usable_plugins

STORE_RETRY_SECONDS = 2.0  # clients are told to try again rather than kept waiting
MAX_CONNECTIONS = 4000  # idle ones included, of which those that wait longest are closed for new ones
SHUTDOWN_SECONDS = 5
# What these import and cache is what later requests need; no study is called none, so that no stream is opened.
_WARM_UP_PATHS = ("/v1/studies", "/v1/studies/none", "/v1/studies/none/events")
_REFERENCE = "#/components/schemas/{model}"
_DESCRIPTION = """Submit studies, follow their progress, and download their results. A worker runs them.

All requests except health checks and metrics need `Authorization: Bearer TOKEN`, and see only studies of the token's
owner and those that are shared with a team of the owner; administrators see all. All errors have the form of
`ErrorDocument`."""

Log = Callable[[str], None]
router = APIRouter(tags=["health"])
_ADMINISTRATION = (
    deletion_routes.router,
    team_routes.router,
    queue_routes.router,
    audit_routes.router,
    token_routes.router,
)
_PAGES = (web.router, sign_in_routes.router, study_page.router, submission.router, queue_page.router, token_page.router)
_ROUTERS = (studies.router, study_files.router, *_ADMINISTRATION, health.router, router)


def application(
    settings: Settings,
    store: Store,
    *,
    probes: Probes | None = None,
    caching: Caching | None = None,
    max_streams: int = MAX_STREAMS,
    max_requests: int = MAX_REQUESTS,
    provider_seconds: float = PROVIDER_SECONDS,
) -> FastAPI:
    """Return the application.

    Args:
        settings: Settings of the installation; `api_token` must be set.
        store: An open store, which the application does not close.
        probes: Readiness checks; those of the configured services if omitted.
        caching: How long answers may be reused; the defaults if omitted.
        max_streams: How many event streams of one client may be open at once.
        max_requests: How many requests of all clients are served at once, event streams included.
        provider_seconds: How long a request may wait for the identity provider.
    """
    probes = probes if probes is not None else probes_of(settings, store)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        probes.close()

    app = FastAPI(
        title="nas-blockout",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    service = make_service(
        settings, store, probes, caching or Caching(), provider_seconds=provider_seconds, max_streams=max_streams
    )
    service.metrics.watch(lambda: _queue_counts(store), lambda: service.streams.total)
    app.state.service = service
    explain = errors.explaining(web.failure)
    errors.handle(app, explain)
    app.add_exception_handler(web.LoggedOut, web.logged_out)
    for routes in (*_ROUTERS, *_PAGES):
        app.include_router(routes)
    app.add_middleware(Guard, service=service, explain=explain, max_requests=max_requests)
    app.openapi = lambda: _description(app)  # type: ignore[method-assign]
    return app


def run(settings: Settings, *, host: str, port: int, log: Log) -> None:
    """Serve the application until SIGINT or SIGTERM.

    Args:
        settings: Settings of the installation; `api_token` must be set.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        log: Called with the address.

    Raises:
        StoreError: The store cannot be opened.
        OSError: The address is in use, or does not belong to this machine.
    """
    _log_to_stderr()
    with Store.open(settings.store_url, retry_seconds=STORE_RETRY_SECONDS) as store, _listening(host, port) as listener:
        listener.listen()  # before logging the address: clients that connect at once wait instead of being refused
        shown = f"[{host}]" if ":" in host else host
        log(f"http://{shown}:{listener.getsockname()[1]}/ serves the studies of {store.url}")
        files = _raised_file_limit()
        # A request may hold a second file, that which it downloads; some room is left for the store and for waiting.
        app = application(settings, store, max_requests=min(MAX_REQUESTS, files // 3))
        config = server_config(app, Room(min(MAX_CONNECTIONS, files // 2)))
        Server(config, app).run(sockets=[listener])


def server_config(app: FastAPI, room: Room) -> uvicorn.Config:
    """Return how uvicorn serves the application.

    Args:
        app: The application.
        room: Limits of its connections.
    """
    return uvicorn.Config(
        app,
        http=partial(BoundedProtocol, room),  # type: ignore[arg-type]  # called like a class
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


class Server(uvicorn.Server):
    """A server that warms up before the first client, and ends event streams before it waits for open connections.

    Args:
        config: Configuration of uvicorn.
        app: The application to serve.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app, self._service = app, app.state.service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve, after imports and caches of first use are warm and exempt from garbage collection."""
        headers = {"Authorization": f"Bearer {self._service.settings.api_token}"}
        inside = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=inside, base_url="http://localhost", headers=headers) as client:
            for path in _WARM_UP_PATHS:
                await client.get(path)
        gc.collect()
        gc.freeze()  # a full collection would visit all of it and stop every request for a quarter of a second
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End the event streams, then shut down."""
        # uvicorn waits for open connections, up to its timeout, and streams do not end by themselves.
        self._service.watcher.close()
        super().handle_exit(sig, frame)


def description() -> dict[str, Any]:
    """Return the OpenAPI description, without a store."""
    app = FastAPI(title="nas-blockout", version=__version__, description=_DESCRIPTION)
    for routes in _ROUTERS:
        app.include_router(routes)
    with allowing(lambda origin: False):  # what is installed here is none of its business
        return _description(app)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Metrics in Prometheus's text format."}},
)
def show_metrics(request: Request) -> Response:
    """Request counts and latencies, open event streams, and queued studies by state."""
    return Response(service_of(request).metrics.text(), media_type=metrics.CONTENT_TYPE)


def _queue_counts(store: Store) -> dict[str, int]:
    """Return studies by state, or nothing if the database is unreachable, so that other metrics are still reported."""
    with suppress(StoreError):
        return store.count_queue()
    return {}


def _description(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description, with the schemas of request bodies that FastAPI does not parse."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        schemas = document["components"]["schemas"]
        # In the context of a request: of the plug-ins that are installed, those that the operator allows.
        of_study = json_schema(usable_plugins()[0], ref_template=_REFERENCE)
        for model, schema in ((StudyConfig, of_study), (Changes, Changes.model_json_schema(ref_template=_REFERENCE))):
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        app.openapi_schema = document
    return app.openapi_schema or {}


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named asyncio disables Nagle's algorithm, by which each response would wait 40 ms for an ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port") from None
    return listener


def _raised_file_limit() -> int:
    """Raise the number of files that this process may open, as far as the system lets it; return the number."""
    wanted = 4 * MAX_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def _log_to_stderr() -> None:
    """Log changes and failures; requests are only counted, see ``/metrics``."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("nas_blockout.api")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").addHandler(handler)
