"""All metrics of Chorus by name, and how they are counted (`docs/metrics.md`).

Each metric is served by exactly one exporter. The driver counts the results of a run exactly, from the statuses of its
regions, and serves them itself. Ray's worker processes count the work (time per stage, bytes), and Ray's exporter
serves that with the prefix ``ray_``; without Ray the driver serves it too, without a prefix. No label is an image or a
region.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server, write_to_textfile

from chorus.cluster.telemetry.timeline import StageSpan
from chorus.pipeline.errors import RefusedError

STAGE_OF = {
    "look up": "read",
    "prepare": "read",
    "score": "write",
    "prepare output": "write",
    "record": "write",
    "image scores": "finish",
    "pyramid": "finish",
    "thumbnail": "finish",
    "image record": "finish",
}
"""The stage of the metrics that a span of the timeline is part of, where it is not one itself."""
ImageState = Literal["done", "empty", "failed"]

REGISTRY = CollectorRegistry()


@dataclass(frozen=True)
class Metric:
    """A metric: its name in Prometheus, without Ray's prefix, and its meaning.

    Attributes
    ----------
    labels : in addition to the common labels of the driver's or the workers' metrics
    """

    name: str
    kind: Literal["counter", "gauge"]
    meaning: str
    labels: tuple[str, ...] = ()


# Counted by the driver; common labels: run and ensemble.
REGIONS = Metric("chorus_regions_total", "counter", "Regions that ended, by how.", ("state",))
TILES = Metric("chorus_tiles_total", "counter", "Tiles evaluated for regions that ended.")
PIXELS = Metric("chorus_pixels_total", "counter", "Pixels written of regions that ended.")
PASSES = Metric("chorus_forward_passes_total", "counter", "Forward passes: tiles times samples that they got.")
RETRIES = Metric("chorus_region_retries_total", "counter", "Times that a region was begun anew as its process died.")
RESTARTS = Metric("chorus_stream_restarts_total", "counter", "Times that Ray broke off and what was left went on.")
IMAGES = Metric("chorus_images_total", "counter", "Images that ended, by how.", ("state",))
REGIONS_OPEN = Metric("chorus_regions_open", "gauge", "Regions that have not ended yet; 0 when no run is active.")
IMAGES_FINISHING = Metric("chorus_images_finishing", "gauge", "Images whose regions are done, but not their pyramids.")
DEVICES = Metric("chorus_devices", "gauge", "Devices at work, one per member actor; 0 when no run is active.")
COST = Metric("chorus_cost_total", "counter", "What the devices of a run have cost so far.", ("currency",))
SENTINEL_DICE = Metric(
    "chorus_sentinel_dice", "gauge", "Dice of a sentinel, stored in the ensemble or found now.",
    ("sentinel", "class", "source"),
)  # fmt: skip
SENTINELS_MOVED = Metric("chorus_sentinels_moved", "gauge", "Sentinel Dice values that moved beyond their tolerance.")
FLAGGED = Metric(
    "chorus_images_flagged", "gauge", "Images that the run, or the last `chorus flag`, flagged, by flag.", ("flag",)
)
DRIVER = (
    REGIONS, TILES, PIXELS, PASSES, RETRIES, RESTARTS, IMAGES, REGIONS_OPEN, IMAGES_FINISHING, DEVICES, COST,
    SENTINEL_DICE, SENTINELS_MOVED, FLAGGED,
)  # fmt: skip

# Counted by the processes that do the work; common labels: run, ensemble and node.
STAGE_SECONDS = Metric(
    "chorus_stage_seconds_total", "counter",
    "Seconds in each stage; infer is the time that a device was held. Its rate is how many are in a stage at once.",
    ("stage",),
)  # fmt: skip
READ_BYTES = Metric("chorus_read_bytes_total", "counter", "Bytes of source pixels read for regions, decoded.")
WRITTEN_BYTES = Metric("chorus_written_bytes_total", "counter", "Bytes of maps and labels written, not yet encoded.")
OOM = Metric("chorus_device_oom_total", "counter", "Times that a device ran out of memory.")
WORKER = (STAGE_SECONDS, READ_BYTES, WRITTEN_BYTES, OOM)

_inside_ray = False


def export_by_ray() -> None:
    """Have the metrics of this process exported by Ray; every Ray process calls it before it works."""
    global _inside_ray
    _inside_ray = True


def run_label(out: str) -> str:
    """Return the name of a run in metrics and logs: the URL of its output, without credentials."""
    return re.sub(r"(?<=://)[^/@]*@", "", out)


class Recorder:
    """Adds values to metrics under a fixed set of labels."""

    def __init__(self, *, ray: bool, **labels: str) -> None:
        self._ray, self._labels = ray, labels

    def add(self, metric: Metric, value: float = 1, **labels: str) -> None:
        """Increase a counter by `value`; a counter is exported only after its first increment, which may be 0."""
        instrument = self._instrument(metric)
        if not self._ray:
            instrument.labels(**self._labels, **labels).inc(value)
        elif value > 0:  # Ray accepts no others
            instrument.inc(value, tags={**self._labels, **labels})

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a gauge; only in a process that is not Ray's."""
        self._instrument(metric).labels(**self._labels, **labels).set(value)

    def _instrument(self, metric: Metric) -> Any:
        names = (*self._labels, *metric.labels)
        with _LOCK:
            return _of_ray(metric, names) if self._ray else _of_this_process(metric, names)


_LOCK = threading.Lock()


@cache
def _of_this_process(metric: Metric, labels: tuple[str, ...]) -> Any:
    kind = Counter if metric.kind == "counter" else Gauge
    return kind(metric.name, metric.meaning, labels, registry=REGISTRY)


@cache
def _of_ray(metric: Metric, labels: tuple[str, ...]) -> Any:
    from ray.util import metrics

    return metrics.Counter(metric.name, metric.meaning, labels)


class WorkMetrics:
    """Counts the work of one process of a run, labelled with the run's output URL and the name of its ensemble."""

    def __init__(self, out: str, ensemble: str) -> None:
        labels = {"run": run_label(out), "ensemble": ensemble, "node": socket.gethostname()}
        self._recorder = Recorder(ray=_inside_ray, **labels)

    def stages(self, spans: Iterable[StageSpan]) -> None:
        """Count the seconds of stages that were noted (`chorus.cluster.telemetry.timeline.span`)."""
        for one in spans:
            self._recorder.add(STAGE_SECONDS, (one.end - one.begin) / 1e9, stage=STAGE_OF.get(one.stage, one.stage))

    def read(self, size: int) -> None:
        """Count `size` bytes of source pixels that were read."""
        self._recorder.add(READ_BYTES, size)

    def written(self, size: int) -> None:
        """Count `size` bytes of maps and labels that were written."""
        self._recorder.add(WRITTEN_BYTES, size)

    def out_of_memory(self) -> None:
        """Count that the device ran out of memory."""
        self._recorder.add(OOM)


def driver_recorder(out: str, ensemble: str) -> Recorder:
    """Return the recorder of the driver's metrics of a run, from its output URL and the name of its ensemble."""
    return Recorder(ray=False, run=run_label(out), ensemble=ensemble)


def write_textfile(path: str) -> None:
    """Write the metrics of this process to a file, for the textfile collector of Prometheus' node exporter.

    Raises
    ------
    RefusedError
        If it cannot be written.
    """
    try:
        write_to_textfile(path, REGISTRY)
    except OSError as error:
        raise RefusedError(f"--metrics-file {path}: {error.strerror}; choose another place") from error


@contextmanager
def served(port: int | None) -> Iterator[None]:
    """Serve metrics at ``http://HOST:port/metrics`` inside the context; do nothing if `port` is None.

    Raises
    ------
    RefusedError
        If the port is taken.
    """
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, registry=REGISTRY)
    except OSError as error:
        raise RefusedError(f"--metrics-port {port}: cannot be taken ({error.strerror}); choose another") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
