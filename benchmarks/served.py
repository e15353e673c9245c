"""How fast a server of `chorus serve` answers: throughput and latency against the bare forward passes of its members.

::

    python benchmarks/served.py ENSEMBLE [--images FOLDER] [--seconds 20] [--clients 1,4,16,64] [--json FILE]

It starts a server on this machine, asks it with so many clients at once, and calls the same members with the same
batches of the same images without anything around them. The ratio of both rates is what serving leaves of the device.
At the end twice as many clients as fit ask a server with short queues: how many are answered, how many refused, and
how much memory it takes.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import socket
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from ray import serve

from cluster import session
from pipeline.geometry import Window
from pipeline.posterior import SampleSums
from pipeline.tiles import PlaneWindow, TileSource
from serving.app import NAME, build
from serving.decoding import decode
from serving.hosting import Hosted
from serving.predicting import plan, prepare
from serving.schemas import PredictOptions
from serving.settings import Limits, parse_settings

NPY = {"Content-Type": "application/x-npy"}


def images_of(folder: str | None, count: int) -> list[bytes]:
    """NPY files of images of a folder, or of blurred noise of 512 x 512."""
    if folder is not None:
        paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".npy", ".png", ".tif"))
        return [path.read_bytes() for path in paths[:count]]
    made = []
    for seed in range(count):
        noise = np.random.default_rng(seed).random((64, 64))
        values = (1000 * np.kron(noise, np.ones((8, 8)))).astype(np.uint16)
        buffer = io.BytesIO()
        np.save(buffer, values)
        made.append(buffer.getvalue())
    return made


def bare_rate(url: str, images: list[bytes], device: str, seconds: float) -> float:
    """Images a second of forward passes alone: prepared beforehand, full batches, nothing blended or scored."""
    settings = parse_settings({"ensembles": {"bench": url}, "device": device})
    hosted = Hosted.load("bench", url, settings)
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
            if device == "cuda":
                torch.cuda.synchronize()
    return done / (time.perf_counter() - began)


def _forward(engine: Any, plane: PlaneWindow, target: Window) -> None:
    settings, device = engine._settings, engine._device
    for _, batch in TileSource(plane, settings, device).batches(target):
        sums = SampleSums.zeros(len(batch), settings.classes, settings.tile, device, flows=settings.flows)
        engine._group.add_samples(batch, sums)


async def ask(url: str, images: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """So many clients, one image after the other each, for so many seconds."""
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    until = time.perf_counter() + seconds
    limits = httpx.Limits(max_connections=clients)

    async def one(client: httpx.AsyncClient, number: int) -> None:
        turn = number
        while time.perf_counter() < until:
            began = time.perf_counter()
            answer = await client.post("/v1/predict", content=images[turn % len(images)], headers=NPY)
            statuses[answer.status_code] += 1
            if answer.status_code == 200:
                latencies.append(time.perf_counter() - began)
            turn += clients

    began = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        await asyncio.gather(*(one(client, number) for number in range(clients)))
    took = time.perf_counter() - began
    cuts = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [float("nan")] * 99
    return {
        "clients": clients,
        "images_per_second": len(latencies) / took,
        "p50": cuts[49],
        "p95": cuts[94],
        "p99": cuts[98],
        "statuses": dict(statuses),
    }


def memory() -> int:
    """Bytes of this process and all that it began."""
    own = psutil.Process()
    return sum(process.memory_info().rss for process in (own, *own.children(recursive=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ensemble")
    parser.add_argument("--images", help="folder of NPY, PNG and TIFF files; made ones by default")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--clients", default="1,4,16,64")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json")
    options = parser.parse_args()
    images = images_of(options.images, options.count)
    bare = bare_rate(options.ensemble, images, options.device, options.seconds)
    print(f"bare forward passes: {bare:.2f} images/s")
    found: dict[str, Any] = {"bare": bare, "served": [], "overload": {}}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    arguments = {"ensembles": {"bench": options.ensemble}, "device": options.device}
    session.start(None, staged=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(arguments), name=NAME, route_prefix="/")
        asyncio.run(ask(url, images, 1, 3))
        for clients in map(int, options.clients.split(",")):
            row = asyncio.run(ask(url, images, clients, options.seconds))
            row["ratio"] = row["images_per_second"] / bare
            found["served"].append(row)
            print(" ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
        serve.run(build(arguments | {"limits": {"ongoing": 8, "queued": 8}}), name=NAME, route_prefix="/")
        before = memory()
        row = asyncio.run(ask(url, images, 32, options.seconds))
        row |= {"memory_before": before, "memory_after": memory()}
        found["overload"] = row
        print("twice as many as fit:", row)
    finally:
        serve.shutdown()
        session.stop()
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
