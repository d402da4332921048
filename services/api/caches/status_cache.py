"""Cache of the status of studies: read from the store at most once a second for any number of clients."""

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from services.api.schemas import ArmView, ProgressView
from services.budget.limits import Unit, shares
from services.store import EventRow, NotFound, QueueRow, SpentRow, Store, StudyStatus
from services.study_config.schema import Budget

STATUS_SECONDS = 1.0
MAX_STUDIES = 1000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The status of a study at a moment.

    Args:
        study_status: Status from the store.
        progress: Progress of its arms.
        text: The progress as JSON.
        digest: Hash of `text`.
        at: Monotonic time of the reading, in seconds.
    """

    study_status: StudyStatus
    progress: ProgressView
    text: str
    digest: str
    at: float

    @property
    def row(self) -> QueueRow:
        """The study in the queue."""
        return self.study_status.row

    @property
    def events(self) -> tuple[EventRow, ...]:
        """Its events."""
        return self.study_status.events


class Watcher:
    """Reads the status of studies; all clients share one reading.

    Args:
        store: The store to read.
        fresh_seconds: Age up to which a status is reused.
        shown: Returns what is shown of a status; all of it if omitted.
    """

    def __init__(
        self,
        store: Store,
        *,
        fresh_seconds: float = STATUS_SECONDS,
        shown: Callable[[StudyStatus], StudyStatus] = lambda status: status,
    ) -> None:
        self._store, self._shown = store, shown
        self.fresh_seconds = fresh_seconds
        self._known: dict[str, Snapshot] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self.closing = False

    def fresh(self, study: str) -> Snapshot | None:
        """Return the status of a study if it was read recently, else None; never queries the database."""
        cached = self._known.get(study)
        return cached if cached is not None and time.monotonic() - cached.at < self.fresh_seconds else None

    def status(self, study: str) -> Snapshot:
        """Return the status of a study, at most `fresh_seconds` old.

        Raises:
            NotFound: There is none of that name, submitted to the service or run without it.
        """
        with self._guard:
            # Whoever holds a lock that is dropped here finishes reading; at worst a study is read twice.
            if len(self._locks) > MAX_STUDIES:
                self._known.clear()
                self._locks.clear()
            lock = self._locks.setdefault(study, threading.Lock())
        with lock:  # one for each study: threads that ask for the same one wait for one reading
            status = self.fresh(study)
            if status is None:
                status = self._known[study] = self._read(study, self._known.get(study))
            return status

    def close(self) -> None:
        """End all event streams: the service is shutting down."""
        self.closing = True

    def forget(self, study: str) -> None:
        """Drop the status of a study that has been changed."""
        self._known.pop(study, None)

    def _read(self, study: str, before: Snapshot | None) -> Snapshot:
        # The time before the reading: a status must not count as newer than what it was read from.
        at = time.monotonic()
        status = self._store.study_status(study) or self._store.command_line_status(study)
        if status is None:
            raise NotFound(f"there is no study {study!r} in the store")
        status = self._shown(status)
        if before is not None and before.study_status == status:
            return replace(before, at=at)  # the same text and digest, without serializing it again
        progress = progress_of(status.row, status.spent)
        text = progress.model_dump_json()
        return Snapshot(status, progress, text, hashlib.sha256(text.encode()).hexdigest()[:12], at)


def progress_of(row: QueueRow, spent: tuple[SpentRow, ...]) -> ProgressView:
    """Return the progress of a study, from the usage of its arms."""
    try:
        budget, names = Budget.model_validate(row.document["budget"]), list(row.document["arms"].keys())
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ):  # this release cannot read the study; the worker says so in its message
        budget, names = None, []
    arms = [_arm(name, budget, [each for each in spent if each.arm == name]) for name in names] if budget else []
    share = sum(arm.share for arm in arms) / len(arms) if arms else 0.0
    return ProgressView(
        state=row.state,
        message=row.message,
        position=row.position,
        expected_at=row.expected_at,
        share=round(share, 4),
        arms=arms,
    )


def _arm(name: str, budget: Budget, spent: list[SpentRow]) -> ArmView:
    total = {key: sum(getattr(each, key) for each in spent) for key in _COUNTED}
    seconds = sum(each.seconds + each.suggest_seconds for each in spent)
    ended = total["complete"] + total["failed"] + total["pruned"]
    used: dict[Unit, float] = {"sample_passes": total["sample_passes"], "seconds": seconds, "trainings": ended}
    best = [each.best for each in spent if each.phase == "search" and each.best is not None]
    return ArmView(
        name=name,
        done=total["complete"],
        running=total["running"],
        queued=total["queued"],
        failed=total["failed"],
        pruned=total["pruned"],
        sample_passes=total["sample_passes"],
        seconds=round(seconds, 1),
        best=max(best, default=None),
        # The limit that is nearest ends the arm, and so is its progress; the last trial may exceed it a little.
        share=round(min(1.0, max(shares(budget, used).values())), 4),
    )


_COUNTED = ("complete", "failed", "pruned", "queued", "running", "sample_passes")
