"""The loop of a worker process: rounds without end, through the absence of database and cluster, until SIGTERM."""

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
from services.dispatch.dispatcher import AT_ONCE, Dispatcher
from services.settings import Settings, SettingsError
from services.store import Store, StoreUnreachable, this_process

POLL_SECONDS = 1.0
MOST_POLL_SECONDS = 8.0
_AWAY = (StoreUnreachable, ClusterError)
_LOG = logging.getLogger(__name__)

Log = Callable[[str], None]


def work(
    settings: Settings,
    *,
    once: bool = False,
    lease_seconds: float = 30.0,
    max_running: int = AT_ONCE,
    log: Log = _LOG.info,
) -> None:
    """See queued studies through as Ray jobs, until SIGTERM or SIGINT; then give the leases back.

    Args:
        settings: Of the installation.
        once: End when nothing is held and nothing is queued, and on the first failure to reach database or cluster.
        lease_seconds: How long a study stays this worker's if it dies.
        max_running: Studies held at a time.
        log: Told what happened, one line each; of an absence once when it begins and once when it ends.

    Raises:
        SettingsError: No cluster is configured.
        StoreError: The store cannot be used, other than for being away.
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
        worker = this_process()
        dispatcher = Dispatcher(
            store,
            Jobs(settings.jobs_address),
            worker=worker,
            lease_seconds=lease_seconds,
            max_running=max_running,
            log=log,
        )
        stack.callback(dispatcher.release)
        log(f"worker {worker} takes studies from {store.url}")
        _rounds(
            dispatcher, ended, pulse(settings), once=once, longest=min(MOST_POLL_SECONDS, lease_seconds / 3), log=log
        )


def pulse(settings: Settings) -> Path:
    """Return the file that a worker of this machine touches after every round in which all it needs was there."""
    return settings.runs / ".workers" / socket.gethostname()


def _rounds(
    dispatcher: Dispatcher, ended: threading.Event, alive: Path, *, once: bool, longest: float, log: Log
) -> None:
    away: str | None = None
    pause = min(POLL_SECONDS, longest)
    while not ended.is_set():
        try:
            dispatcher.round()
        except _AWAY as error:
            if once:
                raise
            if away is None:
                log(f"waits: {error}")
            away, pause = str(error), min(2 * pause, longest)
        else:
            if away is not None:
                log("goes on: everything it needs is there again")
            away, pause = None, min(POLL_SECONDS, longest)
            _touch(alive)
            if once and not dispatcher.held:
                return
        ended.wait(pause)
    log("ends, and gives its studies back")


def _opened(settings: Settings, ended: threading.Event, *, once: bool, log: Log) -> Store | None:
    """Return the store, however long it takes to be there; None if the worker is ended before that."""
    said = False
    while not ended.is_set():
        try:
            return Store.open(settings.store_url)
        except StoreUnreachable as error:
            if once:
                raise
            if not said:
                log(f"waits: {error}")
            said = True
            ended.wait(POLL_SECONDS)
    return None


def _touch(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:  # a full disk must not end the worker; its health check will say that it is silent
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
