"""How fast a server of `chorus serve` answers: throughput and latency against the bare forward passes of its members.

It starts a server on this machine, has Locust ask it with so many clients at once, and calls the same members with the
same batches of the same images without anything around them, right before and after. The ratio of both rates is what
serving leaves of the device. At the end twice as many clients as fit ask a server with short queues: how many are
answered, how many refused, and how much memory it takes.
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer
from ray import serve
from skimage.io import imread

from benchmarks.records import keep
from chorus.cluster.runtime import session
from chorus.pipeline.core.devices import device_of
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.core.sample_sums import SampleSums
from chorus.pipeline.inference.allocation import keep_freed_memory
from chorus.pipeline.inference.tile_stream import PlaneWindow, TileSource
from chorus.serving.app import NAME, build
from chorus.serving.contract.schemas import PredictOptions
from chorus.serving.contract.settings import Limits, parse_settings
from chorus.serving.prediction.hosting import Hosted
from chorus.serving.prediction.steps import plan, prepare
from chorus.serving.web.decoding import decode


def images_of(folder: str | None, count: int) -> list[bytes]:
    """NPY files of the first channel of a folder's images, or of blurred noise of 512 x 512."""
    found = []
    if folder is not None:
        paths = [path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in (".png", ".tif", ".tiff")]
        for path in paths[:count]:
            image = imread(path)
            found.append(image if image.ndim == 2 else image[..., 0])
    else:
        for seed in range(count):
            noise = np.random.default_rng(seed).random((64, 64))
            found.append((1000 * np.kron(noise, np.ones((8, 8)))).astype(np.uint16))
    files = []
    for image in found:
        buffer = io.BytesIO()
        np.save(buffer, image)
        files.append(buffer.getvalue())
    return files


def bare_rate(arguments: dict[str, Any], images: list[bytes], seconds: float) -> float:
    """Images a second of forward passes alone: prepared beforehand, full batches, nothing blended or scored."""
    settings = parse_settings(arguments)
    device_of(settings.device).use_threads(settings.threads)
    hosted = Hosted.load("bench", settings.ensembles["bench"], settings)
    works = []
    for data in images:
        planned = plan(hosted, decode(data, "x", Limits()), PredictOptions(), Limits())
        works.append((prepare(planned).work, planned.settings))
    how = works[0][1]
    engine = hosted.engine(how)
    done, began = 0, time.perf_counter()
    with torch.inference_mode():
        while time.perf_counter() - began < seconds:
            for work, _ in works:
                _forward(engine, work.plane, work.target)
                done += 1
            device_of(settings.device).synchronize()
    return done / (time.perf_counter() - began)


def _forward(engine: Any, plane: PlaneWindow, target: Window) -> None:
    settings, device = engine._settings, engine._device
    for _, batch in TileSource(plane, target, settings, device).batches():
        sums = SampleSums.zeros(settings.outputs, len(batch), settings.covered, device)
        engine._group.add_samples(batch, sums)


def ask(url: str, images: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """So many clients of Locust, one image after the other each, for so many seconds and until all are answered."""
    with tempfile.TemporaryDirectory() as folder:
        for index, data in enumerate(images):
            Path(folder, f"{index:04d}.npy").write_bytes(data)
        figures = Path(folder, "figures.json")
        command = ["locust", "-f", str(Path(__file__).with_name("served_load.py")), "--headless", "--only-summary"]
        command += ["--host", url, "-u", str(clients), "-r", str(clients), "-t", f"{seconds:g}s"]
        command += ["--stop-timeout", "600", "--loglevel", "WARNING", "--exit-code-on-error", "0"]
        told = os.environ | {"CHORUS_IMAGES": folder, "CHORUS_FIGURES": str(figures)}
        subprocess.run([sys.executable, "-m", *command], env=told, check=True, stdout=subprocess.DEVNULL)
        return {"clients": clients, **json.loads(figures.read_text())}


def memory() -> int:
    """Bytes of this process and all that it began."""
    own = psutil.Process()
    return sum(process.memory_info().rss for process in (own, *own.children(recursive=True)))


def main(
    ensemble: Annotated[str, typer.Argument(help="Folder or ensemble.yaml.")],
    images: Annotated[str | None, typer.Option(help="Folder of PNG and TIFF files; made ones by default.")] = None,
    count: Annotated[int, typer.Option(help="How many of them.")] = 16,
    seconds: Annotated[float, typer.Option(help="For the bare passes, and for each number of clients.")] = 60,
    clients: Annotated[str, typer.Option(help="At once, comma-separated.")] = "1,4,16,64",
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    precision: Annotated[str, typer.Option(help="As of `chorus serve`.")] = "fp32",
    backend: Annotated[str, typer.Option(help="As of `chorus serve`.")] = "auto",
    threads: Annotated[int, typer.Option(help="Of the members, bare and served.")] = psutil.cpu_count() or 1,
    results: Annotated[Path, typer.Option(help="Folder for the JSON.")] = Path("benchmarks/results"),
) -> None:
    """Compare a server with the forward passes of its members alone.

    Example: `python benchmarks/served.py chorus/builtin/nuclei-fluo --images images/ --backend openvino`
    """
    # As in the replicas of a server.
    keep_freed_memory()
    sent = images_of(images, count)
    arguments = {"ensembles": {"bench": ensemble}, "device": device, "precision": precision, "backend": backend}
    arguments |= {"threads": threads, "limits": {"ongoing": 64, "queued": 64, "deadline_seconds": 600}}
    before = bare_rate(arguments, sent, seconds / 2)
    found: dict[str, Any] = {"arguments": arguments, "served": [], "overload": {}}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    session.start(None, staged=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(arguments), name=NAME, route_prefix="/")
        ask(url, sent, 1, 3)
        for number in map(int, clients.split(",")):
            found["served"].append(ask(url, sent, number, seconds))
        # Room for half of those that come.
        small = {"limits": {"ongoing": 8, "queued": 8}}
        serve.run(build(arguments | small), name=NAME, route_prefix="/")
        began = memory()
        found["overload"] = ask(url, sent, 32, seconds) | {"memory_before": began, "memory_after": memory()}
    finally:
        serve.shutdown()
        session.stop()
    after = bare_rate(arguments, sent, seconds / 2)
    found |= {"bare_before": before, "bare_after": after}
    for row in found["served"]:
        row["ratio"] = row["images_per_second"] / ((before + after) / 2)
    print(f"bare forward passes: {before:.3f} images/s before, {after:.3f} after")
    for row in [*found["served"], found["overload"]]:
        print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    keep(results, "-served", [found])


if __name__ == "__main__":
    typer.run(main)
