"""Limits per client: requests per second, and open event streams."""

import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass

BURST = 4
MAX_CLIENTS = 10_000
MAX_STREAMS = 64


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Buckets:
    """Token buckets, one per client: an average rate, and bursts of a few times as many requests.

    The buckets are those of this process: behind a proxy, each of several processes allows the full rate.

    Args:
        rate: Requests per second on average.
        burst: Requests at once after a pause; four times the rate if omitted.
    """

    def __init__(self, rate: float, burst: float | None = None) -> None:
        self._rate = rate
        self._burst = burst if burst is not None else BURST * rate
        self._buckets: dict[Hashable, _Bucket] = {}
        self._lock = threading.Lock()

    def wait(self, client: Hashable, *, now: float | None = None) -> float:
        """Count a request; return 0 if it is allowed, else the seconds until the next one is.

        Args:
            client: Identifies the client.
            now: Monotonic time in seconds; that of the machine if omitted.
        """
        moment = time.monotonic() if now is None else now
        with self._lock:
            if client not in self._buckets and len(self._buckets) >= MAX_CLIENTS:
                self._forget(moment)
            bucket = self._buckets.setdefault(client, _Bucket(self._burst, moment))
            # Filled when it is used, in proportion to the time since: no timer, and idle clients cost nothing.
            bucket.tokens = min(self._burst, bucket.tokens + max(0.0, moment - bucket.at) * self._rate)
            bucket.at = moment
            if bucket.tokens < 1:
                return (1 - bucket.tokens) / self._rate
            bucket.tokens -= 1
            return 0.0

    def _forget(self, now: float) -> None:
        """Forget clients whose bucket is full again, or all of them if there are still too many."""
        idle = self._burst / self._rate  # seconds after which a bucket is full again, like that of a new client
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if now - bucket.at < idle}
        if len(self._buckets) >= MAX_CLIENTS:
            self._buckets.clear()


class Streams:
    """Open event streams, by client.

    Args:
        max_open: How many streams of one client may be open at once.
    """

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self._open: dict[Hashable, int] = {}

    @property
    def total(self) -> int:
        """Number of open streams of all clients."""
        return sum(self._open.values())

    def enter(self, client: Hashable) -> bool:
        """Count a new stream of a client; return whether it is allowed."""
        if self._open.get(client, 0) >= self._max_open:
            return False
        self._open[client] = self._open.get(client, 0) + 1
        return True

    def leave(self, client: Hashable) -> None:
        """Count a stream of a client as closed."""
        left = self._open[client] - 1
        if left:
            self._open[client] = left
        else:
            del self._open[client]
