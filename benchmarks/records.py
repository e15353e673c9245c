"""Figures of a benchmark as JSON, with the machine and the versions that they are of."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from chorus.pipeline.core.devices import best, device_of

console = Console()


def surroundings() -> tuple[dict[str, Any], dict[str, str]]:
    """The machine, how busy it is, and versions."""
    names = {key: value.strip() for key, _, value in (line.partition(":") for line in _cpu_info())}
    machine = {
        "processor": names.get("model name", platform.processor()),
        "cores": psutil.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "load": [round(value, 2) for value in psutil.getloadavg()],
    }
    device = device_of(best())
    if device.accelerated:
        machine["gpu"] = device.name()
    libraries = ("chorus-bioimage", "torch", "ray", "zarr", "numpy", "onnxruntime", "openvino")
    found = {each.name: each.version for each in distributions() if each.name in libraries}
    return machine, {"python": platform.python_version()} | dict(sorted(found.items()))


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return [line.replace("\t", "") for line in path.read_text().splitlines()] if path.exists() else []


def keep(folder: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    """Keep figures as JSON with where and when they were measured; `kind` ends the file's name."""
    machine, versions = surroundings()
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    path = folder / f"{stamp}{kind}.json"
    content = {"when": stamp, "machine": machine, "versions": versions, "rows": rows}
    path.write_text(json.dumps(content, indent=2) + "\n")
    console.print(f"kept in {path}", highlight=False)
