"""Numbers for Prometheus: requests, their times, open streams, the queue. The sole importer of prometheus_client."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """What one process has counted since it began."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "nas_blockout_requests", "Requests answered.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "nas_blockout_request_seconds",
            "Seconds until the answer began.",
            ["method", "route"],
            buckets=BUCKETS,
            registry=self._registry,
        )

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            method: Of the request.
            route: The route that took it, with names in braces; never a path, which anybody may make up.
            status: Of the answer.
            seconds: Until the answer began.
        """
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def watch(self, queue: Callable[[], Mapping[str, int]], streams: Callable[[], int]) -> None:
        """Say what else is asked for whenever the numbers are read.

        Args:
            queue: Studies by state.
            streams: Streams that are open.
        """
        self._registry.register(_Now(queue, streams))

    def text(self) -> bytes:
        """Return all numbers in Prometheus's text format."""
        return generate_latest(self._registry)


class _Now(Collector):
    """Numbers that are asked for when they are read; of a database that is away there are none."""

    def __init__(self, queue: Callable[[], Mapping[str, int]], streams: Callable[[], int]) -> None:
        self._queue, self._streams = queue, streams

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Ask nothing while it is registered."""
        return ()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the numbers of now."""
        yield GaugeMetricFamily("nas_blockout_streams_open", "Streams of events that are open.", self._streams())
        studies = GaugeMetricFamily("nas_blockout_studies", "Studies given to the service, by state.", labels=["state"])
        for state, number in self._queue().items():
            studies.add_metric([state], number)
        yield studies
