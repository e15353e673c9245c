"""``run.json`` and ``scores.parquet``: what was run, on what, with which outcome."""

from __future__ import annotations

import io
import json
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pandas as pd
import psutil

from cluster.images import ImageTable
from cluster.plan import ResolvedSettings
from cluster.request import Outcome, PredictRequest
from pipeline import storage
from pipeline.ensemble import Ensemble
from pipeline.errors import OutputError, RefusedError

# What a run makes below its output; --overwrite removes these and nothing else.
ENTRIES = ("images", "ledger", "attempts", "plan", "report", "scores.parquet", "objects.parquet", "run.json")
_LIBRARIES = ("chorus-bioimage", "torch", "ray", "zarr", "numpy", "segmentation-models-pytorch")


@dataclass
class RunRecord:
    """The content of ``run.json``. The result is defined by `defining`; a rerun must have the same."""

    defining: dict[str, Any]
    content: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        request: PredictRequest,
        ensemble: Ensemble,
        settings: ResolvedSettings,
        table: ImageTable,
        started: float,
    ) -> RunRecord:
        defining = {
            "settings": settings.model_dump(mode="json"),
            "ensemble": ensemble.hash,
            "sources": list(request.sources),
            "inputs": table.digest,
        }
        content = {
            "chorus": version("chorus-bioimage"),
            "started": _iso(started),
            "finished": None,
            "outcome": "running",
            "settings": defining["settings"],
            "run": request.run.model_dump(mode="json"),
            "sources": defining["sources"],
            "inputs": {"sha256": table.digest, "images": len(table), "regions": table.regions},
            "ensemble": {
                "name": ensemble.spec.name,
                "url": ensemble.url,
                "hash": ensemble.hash,
                "members": len(ensemble.spec.members),
                "classes": [{"name": c.name, "color": c.color} for c in ensemble.classes],
            },
            "versions": {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES},
            "machine": {"system": platform.platform(), "cores": psutil.cpu_count()},
        }
        return cls(defining, content)

    def close(self, outcome: Outcome, table: ImageTable) -> dict[str, Any]:
        """Fill in how the run ended; returns the summary."""
        finished = datetime.now(UTC)
        counts = {state: sum(row["status"] == state for row in outcome.rows) for state in ("done", "empty", "failed")}
        summary = {
            "images": len(outcome.rows),
            **counts,
            "regions": table.regions,
            "tiles": sum(row["tiles"] for row in outcome.rows),
            "seconds": round((finished - datetime.fromisoformat(self.content["started"])).total_seconds(), 1),
        }
        self.content |= {"finished": finished.isoformat(), "outcome": outcome.state, "summary": summary}
        return summary

    def write(self, out: str) -> None:
        _write(storage.join(out, "run.json"), json.dumps(self.content, indent=2).encode())


def read_run(out: str) -> dict[str, Any]:
    """``run.json`` of an output; raises RefusedError where there is none."""
    url = storage.join(storage.normalise(out), "run.json")
    try:
        content: dict[str, Any] = json.loads(storage.read_bytes(url))
    except OSError as error:
        raise RefusedError(f"{out}: no results of Chorus ({storage.explain(error, url)})") from error
    return content


def open_output(record: RunRecord, out: str, *, overwrite: bool) -> bool:
    """Make sure that `out` is new, or holds a run of the same settings; True where it is new.

    Raises
    ------
    RefusedError
        If it holds other results: what differs, and the two ways out.
    """
    fs, path = storage.filesystem(out)
    present = [storage.basename(name) for name in fs.ls(path, detail=False)] if fs.exists(path) else []
    if "run.json" in present:
        known = read_run(out)
        differences = _differences(record, known)
        if not differences:
            record.content["started"] = known["started"]
            return False
        if not overwrite:
            raise RefusedError(
                f"{out}: holds results of another run ({'; '.join(differences)}); use --overwrite to replace them, or "
                f"another --out"
            )
    elif set(present) - {"run.lock"} and not overwrite:
        raise RefusedError(f"{out}: is not empty and holds no run of Chorus; choose another --out")
    for entry in ENTRIES:
        if entry in present:
            fs.rm(f"{path}/{entry}", recursive=True)
    return True


def write_scores(out: str, rows: list[dict[str, Any]]) -> None:
    """One row per image, in the order of the plan."""
    buffer = io.BytesIO()
    pd.DataFrame(rows).to_parquet(buffer, index=False)
    _write(storage.join(out, "scores.parquet"), buffer.getvalue())


def read_scores(out: str) -> pd.DataFrame:
    """``scores.parquet`` of an output; raises RefusedError where there is none yet."""
    url = storage.join(storage.normalise(out), "scores.parquet")
    try:
        return pd.read_parquet(io.BytesIO(storage.read_bytes(url)))
    except OSError as error:
        raise RefusedError(f"{out}: no scores yet ({storage.explain(error, url)}); run `chorus predict`") from error


def _differences(record: RunRecord, known: dict[str, Any]) -> list[str]:
    """What defines the result and is not the same, in words."""
    found = []
    settings = known.get("settings", {})
    for name, value in record.defining["settings"].items():
        if settings.get(name) != value:
            found.append(f"{name} was {settings.get(name)}, now {value}")
    if known.get("ensemble", {}).get("hash") != record.defining["ensemble"]:
        found.append(f"ensemble was {known.get('ensemble', {}).get('name')}, now another or changed")
    if known.get("sources") != record.defining["sources"]:
        found.append(f"sources were {' '.join(known.get('sources', []))}, now {' '.join(record.defining['sources'])}")
    elif known.get("inputs", {}).get("sha256") != record.defining["inputs"]:
        found.append("the images of the sources changed (their number, shapes or types)")
    return found


def _write(url: str, data: bytes) -> None:
    try:
        storage.write_bytes(url, data)
    except OSError as error:
        raise OutputError(storage.explain(error, url) or f"{url}: {error}") from error


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
