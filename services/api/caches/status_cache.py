"""Where studies stand, read from the store at most once a second however many ask."""

import hashlib
import threading
import time
from dataclasses import dataclass, replace

from services.api.schemas import ArmView, ProgressView
from services.budget.limits import Unit, shares
from services.store import EventRow, NotFound, QueueRow, SpentRow, Store, StudyStatus
from services.study_config.schema import Budget

FRESH_SECONDS = 1.0
MOST_WATCHED = 1000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where a study stood at a moment.

    Args:
        study_status: What the store says.
        progress: Where its arms stand.
        text: The same as JSON.
        digest: Name of that: equal if nothing has changed.
        at: Seconds of a clock that does not jump.
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
        """What has happened to it as a whole."""
        return self.study_status.events


class Watcher:
    """Reads where studies stand; all who follow a study share one reading a second.

    Args:
        store: What is read.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Snapshot] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self.closing = False

    def fresh(self, study: str) -> Snapshot | None:
        """Return where a study stood less than a second ago, if that was read; touches no database."""
        found = self._known.get(study)
        return found if found is not None and time.monotonic() - found.at < FRESH_SECONDS else None

    def status(self, study: str) -> Snapshot:
        """Return where a study stands.

        Raises:
            NotFound: It was not given to the service.
        """
        with self._guard:
            if len(self._locks) > MOST_WATCHED:
                self._known.clear()
                self._locks.clear()
            lock = self._locks.setdefault(study, threading.Lock())
        with lock:
            found = self.fresh(study)
            if found is None:
                found = self._read(study, self._known.get(study))
                self._known[study] = found
            return found

    def close(self) -> None:
        """Let all who follow know that the service ends."""
        self.closing = True

    def forget(self, study: str) -> None:
        """Take note that a study was changed here."""
        self._known.pop(study, None)

    def _read(self, study: str, before: Snapshot | None) -> Snapshot:
        at, found = time.monotonic(), self._store.study_status(study)
        if found is None:
            raise NotFound(f"study {study!r} was not given to the service")
        if before is not None and before.study_status == found:
            return replace(before, at=at)
        progress = progress_of(found.row, found.spent)
        text = progress.model_dump_json()
        return Snapshot(found, progress, text, hashlib.sha256(text.encode()).hexdigest()[:12], at)


def progress_of(row: QueueRow, spent: tuple[SpentRow, ...]) -> ProgressView:
    """Return where a study stands, from what its arms have spent."""
    budget = Budget.model_validate(row.document["budget"])
    arms = [_arm(name, budget, [each for each in spent if each.arm == name]) for name in row.document["arms"]]
    share = sum(arm.share for arm in arms) / len(arms) if arms else 0.0
    return ProgressView(state=row.state, message=row.message, share=round(share, 4), arms=arms)


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
        share=round(min(1.0, max(shares(budget, used).values())), 4),
    )


_COUNTED = ("complete", "failed", "pruned", "queued", "running", "sample_passes")
