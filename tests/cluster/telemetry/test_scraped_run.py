"""A real Prometheus scrapes a run on Ray and its driver: it knows what the run's summary says."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chorus.cluster.telemetry.metrics import WORKER
from tests.support.making import pixels, write_image, write_light_ensemble
from tests.support.paths import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.long]

INFRA = ROOT / "infra"
IMAGES, REGION = 12, 64


def free_port() -> int:
    """A port that is free, and the next one, too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


class Prometheus:
    """One that scrapes every second, with the rules of `infra`."""

    def __init__(self, program: str, folder: Path, port: int) -> None:
        jobs = [("chorus", port), ("ray", port + 1)]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(INFRA / "prometheus" / "rules.yml")],
            "scrape_configs": [
                {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{own}"]}]} for name, own in jobs
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._url = f"127.0.0.1:{free_port()}"
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self._url}",
            ],
            stderr=self._log,
        )
        wait(lambda: self._ready(), 60)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that answer, each with ``metric`` (labels) and ``value``."""
        question = urllib.parse.urlencode({"query": expression})
        answer = json.load(urllib.request.urlopen(f"http://{self._url}/api/v1/query?{question}", timeout=30))
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def number(self, expression: str) -> float:
        """The one value that answers; 0 where nothing does."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else 0.0

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def _ready(self) -> bool:
        try:
            return bool(urllib.request.urlopen(f"http://{self._url}/-/ready", timeout=5).status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False


def wait(done: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, f"not so within {seconds} s"
        time.sleep(0.5)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[Prometheus, int]]:
    """A Prometheus, and the port that it expects a driver at."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("needs prometheus, of Debian's package of that name")
    folder, port = tmp_path / "prometheus", free_port()
    folder.mkdir()
    made = Prometheus(program, folder, port)
    yield made, port
    made.stop()


@pytest.mark.timeout(600)
def test_prometheus_finds_the_counts_of_the_summary(started: tuple[Prometheus, int], tmp_path: Path) -> None:
    prometheus, port = started
    for index in range(IMAGES):
        write_image(tmp_path / "images" / f"{index}.ome.zarr", pixels((2 * REGION, 2 * REGION), seed=index))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "chorus.cli", "predict", tmp_path / "images", "-o", out, "--region", REGION]
    # Wide networks: the run must last longer than the 10 seconds after which Ray first shows what actors count.
    command += ["-e", write_light_ensemble(tmp_path / "ensemble", width=48), "--chunk", 32, "--metrics-port", port]
    command += ["--executor", "ray"]
    subprocess.run([str(part) for part in command], check=True, timeout=500, capture_output=True)

    summary = json.loads((out / "run.json").read_text())["summary"]
    of_run = f'{{run="{out}"}}'
    regions, tiles, images = (f"max_over_time(chorus_{n}_total{of_run}[15m])" for n in ("regions", "tiles", "images"))
    assert prometheus.number(f"sum({regions})") == summary["regions"] == 4 * IMAGES
    assert prometheus.number(tiles) == summary["tiles"]
    ended = {row["metric"]["state"]: float(row["value"][1]) for row in prometheus.query(images)}
    assert ended == {state: summary[state] for state in ("done", "empty", "failed")}

    # Ray's part comes late, and its last seconds never: no more than there was, under the names of the rules.
    at_work = {metric.name for metric in WORKER} - {"chorus_device_oom_total"}
    names = {row["metric"]["__name__"] for row in prometheus.query('last_over_time({__name__=~"ray_chorus_.+"}[15m])')}
    assert names == {f"ray_{name}" for name in at_work}
    read = prometheus.number(f"sum(max_over_time(ray_chorus_read_bytes_total{of_run}[15m]))")
    assert 0 < read <= 2 * 4 * IMAGES * (3 * REGION) ** 2
    assert prometheus.query(f"max_over_time(chorus:stage_seconds:rate2m{of_run}[15m])")
    # The driver's numbers are nobody else's.
    assert not prometheus.query('last_over_time({__name__=~"ray_chorus_(regions|tiles|pixels|images).*"}[15m])')
    for name in ("ray_node_mem_used", "ray_node_mem_total", "ray_component_uss_bytes"):
        assert prometheus.query(f"last_over_time({name}[15m])"), f"Ray has no {name} any more"
