"""How much one client may ask: requests a second, and streams at a time."""

import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass

BURST = 4
MOST_KEYS = 10_000
MOST_STREAMS = 64


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Buckets:
    """Token buckets, one a client: so many requests a second on average, a few times as many at once.

    They are kept in this process: with several processes behind a proxy each of them gives as much.

    Args:
        rate: Requests a second.
        burst: Requests at once, after a pause.
    """

    def __init__(self, rate: float, burst: float | None = None) -> None:
        self._rate = rate
        self._burst = burst if burst is not None else BURST * rate
        self._buckets: dict[Hashable, _Bucket] = {}
        self._lock = threading.Lock()

    def wait(self, client: Hashable, *, now: float | None = None) -> float:
        """Take one request of a client; return 0, or the seconds to wait if it has none left.

        Args:
            client: Anything that tells clients apart.
            now: Seconds of a clock that does not jump; the machine's if left out.
        """
        moment = time.monotonic() if now is None else now
        with self._lock:
            if client not in self._buckets and len(self._buckets) >= MOST_KEYS:
                self._forget(moment)
            bucket = self._buckets.setdefault(client, _Bucket(self._burst, moment))
            bucket.tokens = min(self._burst, bucket.tokens + max(0.0, moment - bucket.at) * self._rate)
            bucket.at = moment
            if bucket.tokens < 1:
                return (1 - bucket.tokens) / self._rate
            bucket.tokens -= 1
            return 0.0

    def _forget(self, now: float) -> None:
        """Forget clients whose bucket is full again, and all of them if that does not help."""
        idle = self._burst / self._rate
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if now - bucket.at < idle}
        if len(self._buckets) >= MOST_KEYS:
            self._buckets.clear()


class Streams:
    """Streams that are open, by client."""

    def __init__(self, most: int = MOST_STREAMS) -> None:
        self._most = most
        self._open: dict[Hashable, int] = {}

    @property
    def total(self) -> int:
        """Streams of all clients."""
        return sum(self._open.values())

    def enter(self, client: Hashable) -> bool:
        """Count a stream of a client; return whether it may be opened."""
        if self._open.get(client, 0) >= self._most:
            return False
        self._open[client] = self._open.get(client, 0) + 1
        return True

    def leave(self, client: Hashable) -> None:
        """Take note that a stream of a client has ended."""
        left = self._open[client] - 1
        if left:
            self._open[client] = left
        else:
            del self._open[client]
