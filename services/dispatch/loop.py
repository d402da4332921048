"""The main loop of a worker: rounds until SIGTERM, also while database or cluster are unreachable."""

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from services.cluster import ClusterError
from services.cluster.jobs import Jobs
from services.dispatch.dispatcher import Dispatcher
from services.dispatch.fair_share import Policy
from services.dispatch.owner_limits import OwnerLimits
from services.dispatch.planning import Planner
from services.files.home_identity import place_identity
from services.removal import tending
from services.settings import Settings, SettingsError
from services.store import Store, StoreUnreachable, this_process

POLL_SECONDS = 1.0
MAX_POLL_SECONDS = 8.0  # while a service is unreachable; doubled up to this
_UNREACHABLE = (StoreUnreachable, ClusterError)
_LOG = logging.getLogger(__name__)

Log = Callable[[str], None]


def work(
    settings: Settings,
    *,
    once: bool = False,
    lease_seconds: float = 30.0,
    log: Log = _LOG.info,
) -> None:
    """Run queued studies as Ray jobs until SIGTERM or SIGINT; then release the leases.

    Args:
        settings: Settings of the installation.
        once: Return when the queue is empty, and fail if database or cluster are unreachable.
        lease_seconds: How long a lease lasts if this worker dies.
        log: Called with one line for each change, and when a service becomes unreachable or reachable again.

    Raises:
        SettingsError: No cluster is configured.
        StoreError: The store cannot be used, for another reason than being unreachable.
    """
    if settings.jobs_address is None:
        raise SettingsError(
            "NAS_BLOCKOUT_JOBS_ADDRESS must name the cluster that runs the studies, such as http://ray-head:8265"
        )
    with ExitStack() as stack:
        ended = stack.enter_context(_ended_by_signals())
        store = _opened(settings, ended, once=once, log=log)
        if store is None:
            return
        stack.enter_context(store)
        worker, jobs = this_process(), Jobs(settings.jobs_address)
        dispatcher = Dispatcher(
            store,
            jobs,
            worker=worker,
            lease_seconds=lease_seconds,
            planner=Planner(store, jobs, policy_of(settings), OwnerLimits.of(settings)),
            options=destination_options(settings, store),
            allows=settings.allows_origin,
            log=log,
        )
        stack.callback(dispatcher.release)  # before the store is closed: callbacks run in reverse order
        if not once:
            stack.enter_context(tending(settings, store, log=log))
        log(f"worker {worker} takes studies from {store.url}")
        _rounds(
            # A third of a lease: one round may fail, and the leases are still renewed in time.
            dispatcher,
            ended,
            pulse(settings),
            once=once,
            longest=min(MAX_POLL_SECONDS, lease_seconds / 3),
            log=log,
        )


def policy_of(settings: Settings) -> Policy:
    """Return what an installation says on who is next."""
    turn = 60.0 * settings.turn_minutes
    return Policy(settings.running_studies, turn, dict(settings.owner_shares), settings.owner_trials)


def destination_options(settings: Settings, store: Store) -> tuple[str, ...]:
    """Return the options of `nas-blockout run` by which a job runs only where it writes to this store and this home.

    Raises:
        SettingsError: The home folder has no identity yet and cannot be written.
    """
    home = place_identity(settings, create=True)
    return ("--store-id", store.identity(), *(("--home-id", home) if home else ()))


def pulse(settings: Settings) -> Path:
    """Return the file that a worker of this machine touches after each round in which all services responded."""
    return settings.runs / ".workers" / socket.gethostname()


def _rounds(
    dispatcher: Dispatcher, ended: threading.Event, alive: Path, *, once: bool, longest: float, log: Log
) -> None:
    away: str | None = None
    pause = min(POLL_SECONDS, longest)
    while not ended.is_set():
        try:
            dispatcher.round()
        except _UNREACHABLE as error:
            if once:
                raise
            if away is None:
                log(f"waits: {error}")
            away, pause = str(error), min(2 * pause, longest)
        else:
            if away is not None:
                log("continues: all services can be reached again")
            away, pause = None, min(POLL_SECONDS, longest)
            _touch(alive)
            if once and not dispatcher.held:
                return
        ended.wait(pause)
    log("ends, and releases its leases")


def _opened(settings: Settings, ended: threading.Event, *, once: bool, log: Log) -> Store | None:
    """Open the store, waiting until it is reachable; return None if the worker is stopped before."""
    logged = False
    while not ended.is_set():
        try:
            return Store.open(settings.store_url)
        except StoreUnreachable as error:
            if once:
                raise
            if not logged:
                log(f"waits: {error}")
            logged = True
            ended.wait(POLL_SECONDS)
    return None


def _touch(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:  # a full disk must not stop the worker; its health check will fail
        _LOG.warning("the pulse %s cannot be written: %s", path, error.strerror)


@contextmanager
def _ended_by_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set, in the main thread; elsewhere nothing sets it."""
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)} if main else {}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
