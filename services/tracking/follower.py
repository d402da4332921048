"""Writes trials to MLflow as they end, beside the training."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from services.store import Store
from services.tracking.data_sets import DataSet
from services.tracking.machine_metrics import MachineMetrics
from services.tracking.mlflow_client import TrackingBusy, TrackingError
from services.tracking.projection import Projection

FOLLOW_SECONDS = 10.0
MAX_FOLLOW_SECONDS = 60.0
FOLLOW_SHARE = 0.02  # of the time, at most: syncing competes with training


@contextmanager
def following(
    uri: str | None,
    study: str,
    config: Mapping[str, Any],
    store: Store,
    *,
    data: Sequence[DataSet] = (),
    warn: Callable[[str], None] = lambda text: None,
    pause_seconds: float = FOLLOW_SECONDS,
) -> Iterator[None]:
    """Write trials to MLflow as they end, in a separate thread; after an error the next round tries again.

    Args:
        uri: Tracking URI, or None for no MLflow.
        study: Name of the study.
        config: The resolved study.
        store: Holds its trials.
        data: What the study trains and selects on.
        warn: Called with each error and note once, from that thread.
        pause_seconds: Shortest pause between rounds.
    """
    ended = threading.Event()
    told = set[str]()

    def tell(text: str) -> None:
        if text not in told:
            told.add(text)
            warn(f"warning: {text}")

    def follow() -> None:
        projection, pause, machine = None, pause_seconds, MachineMetrics(str(uri))
        while not ended.wait(pause):
            began = time.monotonic()
            try:
                projection = projection or Projection(str(uri), study, config, store, data=data)
                projection.sync(until=ended.is_set, wait_seconds=0.0)
                for note in projection.notes:
                    tell(note)
                projection.measure(machine)
            except TrackingBusy:  # somebody syncs the study by hand
                pass
            except TrackingError as error:
                machine.end()  # it has failed as well, and begins again with the next round that succeeds
                tell(f"{error}; the training goes on")
            pause = pause_after(time.monotonic() - began, shortest=pause_seconds)
        machine.end()

    thread = threading.Thread(target=follow, name="tracking", daemon=True)
    if uri is not None:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if uri is not None:
            thread.join()


def pause_after(seconds: float, *, shortest: float = FOLLOW_SECONDS) -> float:
    """Return the seconds to wait after a round that took `seconds`, so that rounds take a small share of the time."""
    return min(MAX_FOLLOW_SECONDS, max(shortest, seconds / FOLLOW_SHARE))
