"""Whether the service is alive, and whether what it needs answers: database, Ray and MLflow, each within seconds."""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Annotated

import httpx
from fastapi import APIRouter, Depends, Request, Response

from services.api.schemas import Alive, Readiness
from services.settings import Settings
from services.store import Store

PROBE_SECONDS = 2.0
FRESH_SECONDS = 2.0
_LOG = logging.getLogger("nas_blockout.api")
_REFUSALS = frozenset({401, 403})

Probe = Callable[[], str]


class Unready(RuntimeError):
    """Something that the service needs does not do what it should; the message is for everybody."""


class Probes:
    """Asks what the service needs, all at once and not too often; one that hangs is not asked again until it ends.

    Args:
        probes: By name: each returns ``ok`` or ``off``, or raises.
        seconds: How long to wait for all of them.
    """

    def __init__(self, probes: Mapping[str, Probe], *, seconds: float = PROBE_SECONDS) -> None:
        self._probes = dict(probes)
        self._seconds = seconds
        self._pool = ThreadPoolExecutor(max(1, len(self._probes)), thread_name_prefix="probe")
        self._running: dict[str, Future[str]] = {}
        self._lock = threading.Lock()
        self._found: tuple[float, Readiness] | None = None

    def ask(self) -> Readiness:
        """Return what each of them says."""
        with self._lock:
            if self._found is not None and time.monotonic() - self._found[0] < FRESH_SECONDS:
                return self._found[1]
            for name, probe in self._probes.items():
                if name not in self._running:
                    self._running[name] = self._pool.submit(probe)
            wait(self._running.values(), timeout=self._seconds)
            services = {name: self._said(name) for name in self._probes}
            ready = all(word in ("ok", "off") for word in services.values())
            self._found = (time.monotonic(), Readiness(ready=ready, services=services))
            return self._found[1]

    def close(self) -> None:
        """Let go of the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _said(self, name: str) -> str:
        future = self._running[name]
        if not future.done():
            return f"does not answer within {self._seconds:g} s"
        del self._running[name]
        try:
            return future.result()
        except Unready as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is not ready, and the page of health stays up
            _LOG.warning("%s is not ready: %s", name, error)
            return "cannot be reached"


def probes_of(settings: Settings, store: Store) -> Probes:
    """Return the questions to everything that is configured."""

    def database() -> str:
        store.count_queue()
        return "ok"

    return Probes({"database": database, "ray": lambda: _ray(settings), "mlflow": lambda: _mlflow(settings)})


def _ray(settings: Settings) -> str:
    if settings.jobs_address is not None:
        from services.cluster.jobs import Jobs

        Jobs(settings.jobs_address).capacity()
        return "ok"
    if settings.ray_address is not None:
        from services.cluster import check

        check(settings.ray_address)
        return "ok"
    return "off"


def _mlflow(settings: Settings) -> str:
    """Ask for an experiment, as clients do: `/health` is green even where they are refused."""
    uri = settings.tracking_uri
    if uri is None or not uri.startswith(("http://", "https://")):
        return "off"
    url = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search"
    answer = httpx.post(url, json={"max_results": 1}, timeout=PROBE_SECONDS, headers=_bearer(), auth=_password())
    if answer.status_code in _REFUSALS:
        raise Unready("does not let us in")
    if not answer.is_success:
        raise Unready(f"answers {answer.status_code}")
    return "ok"


def _bearer() -> dict[str, str]:
    """Return the header that MLflow's own client would send, by its own variable."""
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _password() -> tuple[str, str] | None:
    """Return user and password that MLflow's own client would send, by its own variables."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None


router = APIRouter(tags=["health"])


async def _probes(request: Request) -> Probes:
    probes: Probes = request.app.state.service.probes
    return probes


@router.get("/healthz", summary="Whether the process answers")
async def healthz() -> Alive:  # in no thread: it answers while all of them wait for a database
    """Always well while the process answers: for who restarts it."""
    return Alive()


@router.get(
    "/readyz",
    summary="Whether database, Ray and MLflow answer",
    responses={503: {"model": Readiness, "description": "One of them does not; the answer names it."}},
)
def readyz(response: Response, probes: Annotated[Probes, Depends(_probes)]) -> Readiness:
    """Really asks each of them, for at most two seconds: for who sends requests here."""
    found = probes.ask()
    response.status_code = 200 if found.ready else 503
    return found
