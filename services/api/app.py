"""The application: its routes put together, its description, and the server that runs it."""

import gc
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from types import FrameType
from typing import Any

import httpx
import uvicorn
from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response

from nas_blockout import __version__
from services.api import errors, health, metrics, studies, study_files, web
from services.api.health import Probes, probes_of
from services.api.requests.middleware import Guard
from services.api.schemas import Changes
from services.api.state import make_service, service_of
from services.settings import Settings
from services.store import Store, StoreError
from services.study_config.schema import StudyConfig

PATIENCE_SECONDS = 2.0
MOST_CONNECTIONS = 1000
GOODBYE_SECONDS = 5
_FIRST = ("/v1/studies", "/v1/studies/none", "/v1/studies/none/events")
_REFERENCE = "#/components/schemas/{model}"
_DESCRIPTION = """Give studies to the service, follow them, fetch what they leave behind. A worker runs them.

Every request but those of health needs `Authorization: Bearer TOKEN`, and sees the studies of the token's owner only.
Every error has the shape of `ErrorDocument`."""

Log = Callable[[str], None]
router = APIRouter(tags=["health"])
_ROUTERS = (studies.router, study_files.router, health.router, router)


def application(settings: Settings, store: Store, *, probes: Probes | None = None) -> FastAPI:
    """Return the application.

    Args:
        settings: Of the installation; `api_token` is set.
        store: Open; stays so.
        probes: Ask what the service needs; what is configured if left out.
    """
    asked = probes if probes is not None else probes_of(settings, store)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        asked.close()

    app = FastAPI(
        title="nas-blockout",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    service = make_service(settings, store, asked)
    service.metrics.watch(lambda: _counted(store), lambda: service.streams.total)
    app.state.service = service
    errors.handle(app)
    app.add_exception_handler(web.LoggedOut, web.logged_out)
    for routes in (*_ROUTERS, web.router):
        app.include_router(routes)
    app.add_middleware(Guard, metrics=service.metrics)
    app.openapi = lambda: _description(app)  # type: ignore[method-assign]
    return app


def run(settings: Settings, *, host: str, port: int, log: Log) -> None:
    """Serve the application until SIGINT or SIGTERM.

    Args:
        settings: Of the installation; `api_token` is set.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        log: Told the address.

    Raises:
        StoreError: The store cannot be opened.
        OSError: The address is taken, or is none of this machine.
    """
    _log_to_stderr()
    with Store.open(settings.store_url, retry_seconds=PATIENCE_SECONDS) as store, _listening(host, port) as listener:
        listener.listen()  # before it is said: a client that comes at once waits for the server, and is not refused
        shown = f"[{host}]" if ":" in host else host
        log(f"http://{shown}:{listener.getsockname()[1]}/ serves the studies of {store.url}")
        app = application(settings, store)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=GOODBYE_SECONDS,
        )
        _Server(config, app).run(sockets=[listener])


class _Server(uvicorn.Server):
    """A server whose first clients wait no longer than later ones, and that ends its streams before it waits for them.

    Args:
        config: Of uvicorn.
        app: What is served.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app, self._service = app, app.state.service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, when what is made at first use has been made and stands outside of garbage collection."""
        headers = {"Authorization": f"Bearer {self._service.settings.api_token}"}
        inside = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=inside, base_url="http://localhost", headers=headers) as client:
            for path in _FIRST:
                await client.get(path)
        gc.collect()
        gc.freeze()  # a full collection would go through all of it, and stop every request for a quarter of a second
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note that the process is to end."""
        self._service.watcher.close()
        super().handle_exit(sig, frame)


def description() -> dict[str, Any]:
    """Return the OpenAPI description; needs no store."""
    app = FastAPI(title="nas-blockout", version=__version__, description=_DESCRIPTION)
    for routes in _ROUTERS:
        app.include_router(routes)
    return _description(app)


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus's text format."}},
)
def show_metrics(request: Request) -> Response:
    """Requests, their times, open streams and the queue, in Prometheus's text format."""
    return Response(service_of(request).metrics.text(), media_type=metrics.CONTENT_TYPE)


def _counted(store: Store) -> dict[str, int]:
    """Return studies by state; none of a database that is away, so that all other numbers are still told."""
    with suppress(StoreError):
        return store.count_queue()
    return {}


def _description(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description, with the schemas of bodies that are read by hand."""
    if app.openapi_schema is None:
        found = FastAPI.openapi(app)
        schemas = found["components"]["schemas"]
        for model in (StudyConfig, Changes):
            schema = model.model_json_schema(ref_template=_REFERENCE)
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        app.openapi_schema = found
    return app.openapi_schema or {}


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP: else asyncio leaves Nagle's delay on, and every answer waits 40 ms for the client's acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port") from None
    return listener


def _log_to_stderr() -> None:
    """Write a line for every change and every failure; of requests there are numbers at ``/metrics``."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("nas_blockout.api")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").addHandler(handler)
