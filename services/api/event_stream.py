"""Event streams: each study is polled once for all its followers, who are woken only when it has changed."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from services.api.caches.status_cache import Snapshot, Watcher

HEARTBEAT_SECONDS = 15.0  # proxies close connections on which nothing is sent, usually after 30 to 60 s
MAX_SECONDS = 3600.0  # of one stream; the client reconnects, and perhaps to another process
RETRY_MILLISECONDS = 2000
_END_OF_LINE = "\n"


class Feed:
    """Polls one study while it has followers.

    Args:
        watcher: Reads the status of studies.
        study: Name of the study.
        pause: Seconds between polls.
    """

    def __init__(self, watcher: Watcher, study: str, pause: float) -> None:
        self.followers = 0
        self._watcher, self._study, self._pause = watcher, study, pause
        self._next: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._poll())

    async def now(self) -> Snapshot:
        """Return the status of the study."""
        cached = self._watcher.fresh(self._study)
        return cached if cached is not None else await run_in_threadpool(self._watcher.status, self._study)

    async def changed(self, seconds: float) -> Snapshot | None:
        """Return the status as soon as it changes or the service shuts down; None if that takes more than `seconds`."""
        with contextlib.suppress(TimeoutError):
            # Shielded: the future is shared, and one follower's timeout must not cancel it for the others.
            return await asyncio.wait_for(asyncio.shield(self._next), seconds)
        return None

    def close(self) -> None:
        """Stop polling."""
        self._task.cancel()

    async def _poll(self) -> None:
        last_version: tuple[str, int] | None = None
        while True:
            await asyncio.sleep(self._pause)
            try:
                status = await self.now()
            except Exception as error:  # noqa: BLE001  # raised in every follower, whose stream it ends
                self._next.set_exception(error)
                self._next.exception()  # marks it as retrieved: perhaps no follower is waiting
                return
            # At shutdown all are woken, changed or not, so that their streams can end.
            if (version := (status.digest, len(status.events))) != last_version or self._watcher.closing:
                # Replaced before it is set: whoever is woken and waits again must wait for the next change.
                waiting, self._next = self._next, asyncio.get_running_loop().create_future()
                last_version = version
                waiting.set_result(status)


class Feeds:
    """The studies that have followers in this process; for use in one event loop.

    Args:
        watcher: Reads the status of studies.
        pause: Seconds between polls of a study; as long as the watcher reuses a status if omitted.
    """

    def __init__(self, watcher: Watcher, *, pause: float | None = None) -> None:
        self.watcher = watcher
        self._pause = watcher.fresh_seconds if pause is None else pause
        self._feeds: dict[str, Feed] = {}

    @contextlib.contextmanager
    def joined(self, study: str) -> Iterator[Feed]:
        """Yield the feed of a study, shared by all its followers; it ends with the last of them."""
        feed = self._feeds.get(study)
        if feed is None:
            feed = self._feeds[study] = Feed(self.watcher, study, self._pause)
        feed.followers += 1
        try:
            yield feed
        finally:
            feed.followers -= 1  # no lock: all of this runs in one event loop, without an await in between
            if not feed.followers:
                feed.close()
                del self._feeds[study]


def streamed(events: AsyncIterator[ServerSentEvent], *, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> Response:
    """Return the response that sends events as they come, and ends with its client.

    Args:
        events: The events.
        heartbeat_seconds: Time after which a comment is sent, so that proxies keep the connection.
    """
    # Streams end with their watcher, which each server closes; a signal would end those of later servers, too.
    AppStatus.enable_automatic_graceful_drain = False
    return EventSourceResponse(
        events,
        ping=heartbeat_seconds,
        ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep=_END_OF_LINE),
        sep=_END_OF_LINE,
    )


async def follow(
    feeds: Feeds,
    study: str,
    *,
    last: str = "",
    allowed: Callable[[], bool],
    check_seconds: float = HEARTBEAT_SECONDS,
) -> AsyncIterator[ServerSentEvent]:
    """Yield server-sent events of a study until it has ended: what happened to it, and its progress.

    The ID of an event holds the number of events sent so far and the digest of the last progress, from which a client
    that was disconnected can continue.

    Args:
        feeds: Feeds of the studies that are followed.
        study: Name of the study.
        last: ID of the last event that the client received, if any.
        allowed: Whether the client still has access.
        check_seconds: Time between two calls of `allowed`.
    """
    sent, digest = _parsed(last)
    began = checked = time.monotonic()
    yield ServerSentEvent(retry=RETRY_MILLISECONDS, sep=_END_OF_LINE)
    with feeds.joined(study) as feed:
        status: Snapshot | None = await feed.now()
        while not feeds.watcher.closing and time.monotonic() - began < MAX_SECONDS:
            if status is not None:
                for event in status.events[sent:]:  # events are only ever added, so that their number is a position
                    sent += 1
                    happened = json.dumps({"at": event.at.isoformat(), "kind": event.kind}, separators=(",", ":"))
                    yield _event("happened", f"{sent}-{digest}", happened)
                if status.digest != digest:
                    digest = status.digest
                    yield _event("progress", f"{sent}-{digest}", status.text)
                if status.row.ended:
                    ended = {"state": status.row.state, "message": status.row.message}
                    yield _event("end", f"{sent}-{digest}-end", json.dumps(ended, separators=(",", ":")))
                    return
            if time.monotonic() - checked >= check_seconds:
                checked = time.monotonic()
                if not await run_in_threadpool(allowed):
                    return
            status = await feed.changed(max(0.0, check_seconds - (time.monotonic() - checked)))


def has_received_end(last: str, status: Snapshot) -> bool:
    """Whether a client that reconnects has received the end of a study, which has not been resumed since."""
    return last.endswith("-end") and status.row.ended and _parsed(last) == (len(status.events), status.digest)


def _event(kind: str, identity: str, data: str) -> ServerSentEvent:
    return ServerSentEvent(data, id=identity, event=kind, sep=_END_OF_LINE)


def _parsed(identity: str) -> tuple[int, str]:
    number, _, rest = identity.partition("-")
    # From the client, which may send anything; without a usable position the stream begins from the start.
    if not (number.isascii() and number.isdecimal() and len(number) < 9):
        return 0, ""
    return int(number), rest.partition("-")[0]
