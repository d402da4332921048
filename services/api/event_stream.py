"""Following a study: one look a second for all who follow it, who are woken only when it has changed."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator

from starlette.concurrency import run_in_threadpool

from services.api.caches.status_cache import FRESH_SECONDS, Snapshot, Watcher

HEARTBEAT_SECONDS = 15.0
LONGEST_SECONDS = 3600.0
RETRY_MILLISECONDS = 2000


class Feed:
    """Looks at one study while anybody follows it.

    Args:
        watcher: Knows where studies stand.
        study: Name of the study.
        pause: Seconds between looks.
    """

    def __init__(self, watcher: Watcher, study: str, pause: float) -> None:
        self.followers = 0
        self._watcher, self._study, self._pause = watcher, study, pause
        self._next: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._look())

    async def now(self) -> Snapshot:
        """Return where the study stands."""
        found = self._watcher.fresh(self._study)
        return found if found is not None else await run_in_threadpool(self._watcher.status, self._study)

    async def changed(self, seconds: float) -> Snapshot | None:
        """Return where the study stands once that has changed, or the service ends; None if not within `seconds`."""
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(asyncio.shield(self._next), seconds)
        return None

    def close(self) -> None:
        """Look no more."""
        self._task.cancel()

    async def _look(self) -> None:
        shown: tuple[str, int] | None = None
        while True:
            await asyncio.sleep(self._pause)
            try:
                found = await self.now()
            except Exception as error:  # noqa: BLE001  # it ends the streams of all who follow
                self._next.set_exception(error)
                self._next.exception()  # perhaps nobody waits just now
                return
            if (seen := (found.digest, len(found.events))) != shown or self._watcher.closing:
                told, self._next = self._next, asyncio.get_running_loop().create_future()
                shown = seen
                told.set_result(found)


class Feeds:
    """The studies that are followed in this process; used by one event loop.

    Args:
        watcher: Knows where studies stand.
        pause: Seconds between looks at one of them.
    """

    def __init__(self, watcher: Watcher, *, pause: float = FRESH_SECONDS) -> None:
        self.watcher = watcher
        self._pause = pause
        self._feeds: dict[str, Feed] = {}

    @contextlib.contextmanager
    def joined(self, study: str) -> Iterator[Feed]:
        """Yield what looks at a study for all who follow it; the last who leaves ends it."""
        feed = self._feeds.get(study)
        if feed is None:
            feed = self._feeds[study] = Feed(self.watcher, study, self._pause)
        feed.followers += 1
        try:
            yield feed
        finally:
            feed.followers -= 1
            if not feed.followers:
                feed.close()
                del self._feeds[study]


async def follow(feeds: Feeds, study: str, *, last: str = "", allowed: Callable[[], bool]) -> AsyncIterator[str]:
    """Yield server-sent events of a study until it has ended: what happened to it, and where it stands.

    The identity of an event says how many happenings were told, and which progress; with it a client that was cut off
    goes on where it was.

    Args:
        feeds: Know where studies stand.
        study: Name of the study.
        last: Identity of the last event that the client has, if any.
        allowed: Asked now and then whether the client may still see it.
    """
    told, shown = _parsed(last)
    began = spoke = asked = time.monotonic()
    yield f"retry: {RETRY_MILLISECONDS}\n\n"
    with feeds.joined(study) as feed:
        found: Snapshot | None = await feed.now()
        while not feeds.watcher.closing and time.monotonic() - began < LONGEST_SECONDS:
            if found is not None:
                for event in found.events[told:]:
                    told += 1
                    happened = json.dumps({"at": event.at.isoformat(), "kind": event.kind}, separators=(",", ":"))
                    yield _event("happened", f"{told}-{shown}", happened)
                if found.digest != shown:
                    shown, spoke = found.digest, time.monotonic()
                    yield _event("progress", f"{told}-{shown}", found.text)
                if found.row.ended:
                    ended = {"state": found.row.state, "message": found.row.message}
                    yield _event("end", f"{told}-{shown}-end", json.dumps(ended, separators=(",", ":")))
                    return
            now = time.monotonic()
            if now - spoke >= HEARTBEAT_SECONDS:
                spoke = now
                yield ": still here\n\n"
            if now - asked >= HEARTBEAT_SECONDS:
                asked = now
                if not await run_in_threadpool(allowed):
                    return
            found = await feed.changed(max(0.0, HEARTBEAT_SECONDS - (now - min(spoke, asked))))


def has_seen_the_end(last: str, found: Snapshot) -> bool:
    """Whether a client that comes back has been told how a study ended, and that still holds."""
    told, shown = _parsed(last)
    return last.endswith("-end") and found.row.ended and (told, shown) == (len(found.events), found.digest)


def _event(kind: str, identity: str, data: str) -> str:
    return f"id: {identity}\nevent: {kind}\ndata: {data}\n\n"


def _parsed(identity: str) -> tuple[int, str]:
    number, _, rest = identity.partition("-")
    if not (number.isascii() and number.isdecimal() and len(number) < 9):
        return 0, ""
    return int(number), rest.partition("-")[0]
