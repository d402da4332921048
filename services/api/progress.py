"""Where studies stand, read from the store at most once a second however many follow, and told as it changes."""

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool

from services.api.models import ArmView, ProgressView
from services.budget import Unit, shares
from services.store import EventRow, NotFound, QueueRow, SpentRow, Store
from services.study_file import Budget

FRESH_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0
LONGEST_SECONDS = 3600.0
RETRY_MILLISECONDS = 2000
MOST_WATCHED = 1000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where a study stood at a moment.

    Args:
        row: The study in the queue.
        progress: Where its arms stand.
        events: What has happened to it as a whole.
        at: Seconds of a clock that does not jump.
    """

    row: QueueRow
    progress: ProgressView
    events: tuple[EventRow, ...]
    at: float

    @property
    def digest(self) -> str:
        """Name of what is shown: equal if nothing has changed."""
        return hashlib.sha256(self.progress.model_dump_json().encode()).hexdigest()[:12]


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

    def look(self, study: str) -> Snapshot:
        """Return where a study stands.

        Raises:
            NotFound: It was not given to the service.
        """
        with self._guard:
            if len(self._known) > MOST_WATCHED:
                self._known.clear()
                self._locks.clear()
            lock = self._locks.setdefault(study, threading.Lock())
        with lock:
            found = self.fresh(study)
            if found is None:
                found = self._read(study)
                self._known[study] = found
            return found

    def close(self) -> None:
        """Let all who follow know that the service ends."""
        self.closing = True

    def forget(self, study: str) -> None:
        """Take note that a study was changed here."""
        self._known.pop(study, None)

    def _read(self, study: str) -> Snapshot:
        row = self._store.queue_row(study)
        if row is None:
            raise NotFound(f"study {study!r} was not given to the service")
        try:
            spent, events = self._store.spent(study), self._store.events(study)
        except NotFound:  # no driver has begun it
            spent, events = (), ()
        return Snapshot(row, progress_of(row, spent), events, time.monotonic())


def progress_of(row: QueueRow, spent: tuple[SpentRow, ...]) -> ProgressView:
    """Return where a study stands, from what its arms have spent."""
    budget = Budget.model_validate(row.document["budget"])
    arms = [_arm(name, budget, [each for each in spent if each.arm == name]) for name in row.document["arms"]]
    share = sum(arm.share for arm in arms) / len(arms) if arms else 0.0
    return ProgressView(state=row.state, message=row.message, share=round(share, 4), arms=arms)


def _arm(name: str, budget: Budget, spent: list[SpentRow]) -> ArmView:
    total = {key: sum(getattr(each, key) for each in spent) for key in _COUNTED}
    seconds = sum(each.seconds + each.thinking_seconds for each in spent)
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


async def follow(
    watcher: Watcher, study: str, *, last: str = "", allowed: Callable[[], bool], pause: float = FRESH_SECONDS
) -> AsyncIterator[str]:
    """Yield server-sent events of a study until it has ended: what happened to it, and where it stands.

    The identity of an event says how many happenings were told, and which progress; with it a client that was cut off
    goes on where it was.

    Args:
        watcher: Knows where studies stand.
        study: Name of the study.
        last: Identity of the last event that the client has, if any.
        allowed: Asked now and then whether the client may still see it.
        pause: Seconds between looks.
    """
    told, shown = _parsed(last)
    began = spoke = asked = time.monotonic()
    yield f"retry: {RETRY_MILLISECONDS}\n\n"
    while not watcher.closing and time.monotonic() - began < LONGEST_SECONDS:
        found = watcher.fresh(study)
        if found is None:
            found = await run_in_threadpool(watcher.look, study)
        for event in found.events[told:]:
            told += 1
            yield _event("happened", f"{told}-{shown}", {"at": event.at.isoformat(), "kind": event.kind})
        if found.digest != shown:
            shown, spoke = found.digest, time.monotonic()
            yield _event("progress", f"{told}-{shown}", found.progress.model_dump(mode="json"))
        if found.row.ended:
            yield _event("end", f"{told}-{shown}-end", {"state": found.row.state, "message": found.row.message})
            return
        if time.monotonic() - spoke >= HEARTBEAT_SECONDS:
            spoke = time.monotonic()
            yield ": still here\n\n"
        if time.monotonic() - asked >= HEARTBEAT_SECONDS:
            asked = time.monotonic()
            if not await run_in_threadpool(allowed):
                return
        await asyncio.sleep(pause)


def has_seen_the_end(last: str, found: Snapshot) -> bool:
    """Whether a client that comes back has been told how a study ended, and that still holds."""
    told, shown = _parsed(last)
    return last.endswith("-end") and found.row.ended and (told, shown) == (len(found.events), found.digest)


def _event(kind: str, identity: str, data: Any) -> str:
    return f"id: {identity}\nevent: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


def _parsed(identity: str) -> tuple[int, str]:
    number, _, rest = identity.partition("-")
    if not (number.isascii() and number.isdecimal() and len(number) < 9):
        return 0, ""
    return int(number), rest.partition("-")[0]
