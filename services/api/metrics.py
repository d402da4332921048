"""Prometheus metrics: requests, latencies, open streams, the queue. The sole importer of prometheus_client."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Metrics of this process since it started."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()  # not the global one: several applications in a process stay apart
        self._requests = Counter(
            "nas_blockout_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "nas_blockout_request_seconds",
            "Seconds until the response started.",
            ["method", "route"],
            buckets=BUCKETS,
            registry=self._registry,
        )

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            method: HTTP method.
            route: Template of the route; never the path, which would let clients create any number of time series.
            status: HTTP status code.
            seconds: Time until the response started.
        """
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def watch(self, queue: Callable[[], Mapping[str, int]], streams: Callable[[], int]) -> None:
        """Add gauges that are read whenever metrics are collected.

        Args:
            queue: Returns the number of studies by state.
            streams: Returns the number of open streams.
        """
        self._registry.register(_Gauges(queue, streams))

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class _Gauges(Collector):
    """Gauges that are computed on collection."""

    def __init__(self, queue: Callable[[], Mapping[str, int]], streams: Callable[[], int]) -> None:
        self._queue, self._streams = queue, streams

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return nothing: otherwise registration would collect, and so query the database."""
        return ()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return the present values."""
        yield GaugeMetricFamily("nas_blockout_streams_open", "Open event streams.", self._streams())
        studies = GaugeMetricFamily("nas_blockout_studies", "Submitted studies, by state.", labels=["state"])
        for state, number in self._queue().items():
            studies.add_metric([state], number)
        yield studies
