"""Metrics of serving in addition to `chorus.cluster.telemetry.metrics`: of the web application and of replicas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from chorus.cluster.telemetry.metrics import Metric

if TYPE_CHECKING:
    from chorus.cluster.regions.batching import Load
    from chorus.serving.contract.predictors import PredictorOutcome

# Upper bounds in seconds.
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

REQUESTS = Metric(
    "chorus_http_requests_total", "counter", "Requests that were answered.", ("route", "method", "status")
)
SECONDS = Metric("chorus_http_request_seconds", "gauge", "Seconds until the answer, a histogram.", ("route",))
OPEN = Metric("chorus_http_requests_open", "gauge", "Requests that are being answered.")
RECEIVED = Metric("chorus_http_received_bytes_total", "counter", "Bytes of bodies that arrived.")
RETRIES = Metric("chorus_http_retries_total", "counter", "Predictions begun anew as their replica died.")
APPLICATION = (REQUESTS, SECONDS, OPEN, RECEIVED, RETRIES)

PREDICTIONS = Metric("chorus_serve_predictions_total", "counter", "Images that ended, by how.", ("status",))
PREDICT_SECONDS = Metric("chorus_serve_predict_seconds_total", "counter", "Seconds that images were in a replica.")
SERVED_TILES = Metric("chorus_serve_tiles_total", "counter", "Tiles evaluated for requests.")
CALLS = Metric("chorus_serve_batches_total", "counter", "Calls of the members; each has room for a batch of tiles.")
DEVICE_SECONDS = Metric("chorus_serve_device_seconds_total", "counter", "Seconds that the members were called for.")
REPLICA = (PREDICTIONS, PREDICT_SECONDS, SERVED_TILES, CALLS, DEVICE_SECONDS)


class ApplicationMetrics:
    """Metrics of one process of the web application, which serves them at ``/metrics``."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        here = self._registry
        self._requests = Counter(REQUESTS.name, REQUESTS.meaning, REQUESTS.labels, registry=here)
        self._seconds = Histogram(SECONDS.name, SECONDS.meaning, SECONDS.labels, buckets=BUCKETS, registry=here)
        self._open = Gauge(OPEN.name, OPEN.meaning, registry=here)
        self._received = Counter(RECEIVED.name, RECEIVED.meaning, registry=here)
        self._retries = Counter(RETRIES.name, RETRIES.meaning, registry=here)

    def began(self) -> None:
        """Count a request that arrived."""
        self._open.inc()

    def ended(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request; `route` is a pattern, never text from a client."""
        self._open.dec()
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def received(self, size: int) -> None:
        """Count `size` bytes of a body."""
        self._received.inc(size)

    def retried(self) -> None:
        """Count a prediction that is retried because its replica died."""
        self._retries.inc()

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class ReplicaMetrics:
    """Metrics of one replica, exported by Ray with the prefix ``ray_``; without Ray they are not collected.

    Parameters
    ----------
    ensemble : its name
    """

    def __init__(self, ensemble: str, *, in_ray: bool) -> None:
        self._labels = {"ensemble": ensemble}
        self._counters = _of_ray(REPLICA) if in_ray else {}
        self._calls = self._tiles = 0
        self._seconds = 0.0

    def began(self) -> None:
        """Do nothing: an image is counted when it ends."""

    def ended(self, outcome: PredictorOutcome, seconds: float, load: Load) -> None:
        """Count an image and what its replica did since the last one."""
        status = str(getattr(outcome, "status", 202 if hasattr(outcome, "regions") else 200))
        self._add(PREDICTIONS, 1, status=status)
        self._add(PREDICT_SECONDS, seconds)
        self._add(CALLS, load.calls - self._calls)
        self._add(SERVED_TILES, load.tiles - self._tiles)
        self._add(DEVICE_SECONDS, load.seconds - self._seconds)
        self._calls, self._tiles, self._seconds = load.calls, load.tiles, load.seconds

    def _add(self, metric: Metric, value: float, **labels: str) -> None:
        counter = self._counters.get(metric.name)
        if counter is not None and value > 0:
            counter.inc(value, tags=self._labels | labels)


def _of_ray(metrics: Iterable[Metric]) -> dict[str, Any]:
    from ray.util import metrics as of_ray

    return {m.name: of_ray.Counter(m.name, m.meaning, ("ensemble", *m.labels)) for m in metrics}
