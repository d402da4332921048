"""Liveness of the service, and readiness of what it needs: database, Ray and MLflow."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Annotated

import httpx
from fastapi import APIRouter, Depends, Request, Response

from services.api.schemas import Alive, Readiness
from services.secret_files import secret
from services.settings import Settings
from services.store import Store

PROBE_SECONDS = 2.0
FRESH_SECONDS = 2.0  # load balancers of several replicas ask all the time
_LOG = logging.getLogger("nas_blockout.api")
_REFUSALS = frozenset({401, 403})

Probe = Callable[[], str]


class Unready(RuntimeError):
    """A dependency is not ready; the message is public."""


class Probes:
    """Checks all dependencies at the same time, at most every few seconds; a check that hangs is not started again.

    Args:
        probes: Checks by name; each returns ``ok`` or ``off``, or raises.
        seconds: How long to wait for all checks.
    """

    def __init__(self, probes: Mapping[str, Probe], *, seconds: float = PROBE_SECONDS) -> None:
        self._probes = dict(probes)
        self._seconds = seconds
        self._pool = ThreadPoolExecutor(max(1, len(self._probes)), thread_name_prefix="probe")
        self._running: dict[str, Future[str]] = {}
        self._lock = threading.Lock()
        self._last: tuple[float, Readiness] | None = None

    def ask(self) -> Readiness:
        """Return the status of each dependency."""
        with self._lock:
            if self._last is not None and time.monotonic() - self._last[0] < FRESH_SECONDS:
                return self._last[1]
            for name, probe in self._probes.items():
                # One that still hangs from an earlier call is waited for again; a second would take another thread.
                if name not in self._running:
                    self._running[name] = self._pool.submit(probe)
            wait(self._running.values(), timeout=self._seconds)
            services = {name: self._status(name) for name in self._probes}
            ready = all(status in ("ok", "off") for status in services.values())
            self._last = (time.monotonic(), Readiness(ready=ready, services=services))
            return self._last[1]

    def close(self) -> None:
        """Shut the thread pool down."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _status(self, name: str) -> str:
        future = self._running[name]
        if not future.done():
            return f"does not answer within {self._seconds:g} s"
        del self._running[name]
        try:
            return future.result()
        except Unready as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  # a failing check must not fail the endpoint
            _LOG.warning("%s is not ready: %s", name, error)
            return "cannot be reached"


def probes_of(settings: Settings, store: Store) -> Probes:
    """Return the checks of all configured dependencies."""

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
    """Ask for an experiment, as clients do: MLflow's `/health` is green even where it refuses clients."""
    uri = settings.tracking_uri
    if uri is None or not uri.startswith(("http://", "https://")):
        return "off"
    url = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search"
    answer = httpx.post(url, json={"max_results": 1}, timeout=PROBE_SECONDS, headers=_bearer(), auth=_password())
    if answer.status_code in _REFUSALS:
        raise Unready("refuses the credentials of the service")
    if not answer.is_success:
        raise Unready(f"answers with status {answer.status_code}")
    return "ok"


def _bearer() -> dict[str, str]:
    """Return the header that MLflow's client would send, from its environment variable or a file."""
    token = secret("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _password() -> tuple[str, str] | None:
    """Return the user and password that MLflow's client would send, from its environment variables or files."""
    user = secret("MLFLOW_TRACKING_USERNAME")
    return (user, secret("MLFLOW_TRACKING_PASSWORD") or "") if user else None


router = APIRouter(tags=["health"])


async def _probes(request: Request) -> Probes:
    probes: Probes = request.app.state.service.probes
    return probes


@router.get("/healthz", summary="Liveness")
async def healthz() -> Alive:  # async, so that it answers while all threads wait for a database
    """Always succeeds while the process responds; for whatever restarts the process."""
    return Alive()


@router.get(
    "/readyz",
    summary="Readiness of database, Ray and MLflow",
    responses={503: {"model": Readiness, "description": "A dependency is not ready; the response names it."}},
)
def readyz(response: Response, probes: Annotated[Probes, Depends(_probes)]) -> Readiness:
    """Checks each dependency, for at most two seconds; for load balancers."""
    readiness = probes.ask()
    response.status_code = 200 if readiness.ready else 503
    return readiness
