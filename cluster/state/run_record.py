"""``run.json``: settings, inputs and outcome of a run; and the list of what Chorus owns in an output."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import psutil

from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import PLAN, ResolvedSettings
from chorus.cluster.planning.requests import Outcome, PredictRequest
from chorus.pipeline.backends.choice import Backend
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.storage import remove_folder, storage_errors
from chorus.pipeline.members.registry import plug_in_versions

# Results of a run below its output; --overwrite removes these and nothing else.
# The ledger goes first: what it names must exist, even if removal is interrupted.
ENTRIES = (
    "ledger",
    "images",
    "attempts",
    "plan",
    "report",
    "scores.parquet",
    "features.parquet",
    "evaluation.parquet",
    "evaluation.json",
    "reliability.svg",
    "flags.parquet",
    "shift.json",
    "sentinels",
    "sentinels.json",
    "work",
    "objects.parquet",
    "objects.json",
    "profile",
    "run.json",
)
_LIBRARIES = ("chorus-bioimage", "torch", "ray", "zarr", "numpy", "segmentation-models-pytorch")


@dataclass
class RunRecord:
    """The content of ``run.json``. The result is defined by `defining` and `table`; a rerun must have the same.

    `failed` names images that could not be planned: in a rerun they may be repaired, or others may fail.
    """

    defining: dict[str, Any]
    table: ImageTable
    failed: list[str]
    content: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        request: PredictRequest,
        ensemble: Ensemble,
        settings: ResolvedSettings,
        table: ImageTable,
        failed: list[str],
        started: float,
    ) -> RunRecord:
        """Create the record of a run that begins."""
        defining = {
            "settings": settings.model_dump(mode="json"),
            "ensemble": ensemble.hash,
            "sources": list(request.sources),
        }
        content = {
            "started": _iso(started),
            "finished": None,
            "outcome": "running",
            "repeated": 0,
            "smaller_batch": 0,
            "settings": defining["settings"],
            "run": request.run.model_dump(mode="json"),
            "sources": defining["sources"],
            "inputs": {
                "sha256": table.digest,
                "images": len(table),
                "regions": table.regions,
                "failed": failed,
            },
            "ensemble": {
                "name": ensemble.spec.name,
                "url": ensemble.url,
                "hash": ensemble.hash,
                "members": len(ensemble.spec.members),
                "classes": [{"name": c.name, "color": c.color} for c in ensemble.classes],
            },
        } | surroundings()
        return cls(defining, table, failed, content)

    def repeat(self, times: int) -> None:
        """Add to the number of times that regions were retried and their unfinished work was lost."""
        self.content["repeated"] += times

    def close(self, outcome: Outcome, table: ImageTable) -> dict[str, Any]:
        """Fill in how the run ended; return the summary."""
        finished = datetime.now(UTC)
        counts = {state: sum(row["status"] == state for row in outcome.rows) for state in ("done", "empty", "failed")}
        summary = {
            "images": len(outcome.rows),
            **counts,
            "regions": table.regions,
            "repeated": self.content.pop("repeated"),
            "smaller_batch": self.content.pop("smaller_batch"),
            "tiles": sum(row["tiles"] for row in outcome.rows),
            **_saved(outcome, self.content),
            "seconds": round((finished - datetime.fromisoformat(self.content["started"])).total_seconds(), 1),
        }
        self.content |= {"finished": finished.isoformat(), "outcome": outcome.state, "summary": summary}
        return summary

    def write(self, out: str) -> None:
        """Write ``run.json``; raise OutputError if it cannot be written."""
        write_run(self.content, out)


def surroundings() -> dict[str, Any]:
    """Return the versions and the machine of this process."""
    return {
        "chorus": version("chorus-bioimage"),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in _LIBRARIES}
        | plug_in_versions(),
        "machine": {"system": platform.platform(), "cores": psutil.cpu_count()},
    }


def write_run(content: dict[str, Any], out: str) -> None:
    """Write ``run.json`` of an output; raise OutputError if it cannot be written."""
    _write(storage.join(out, "run.json"), json.dumps(content, indent=2).encode())


def read_run(out: str) -> dict[str, Any]:
    """Return ``run.json`` of an output; raise RefusedError if there is none."""
    url = storage.join(storage.normalise(out), "run.json")
    try:
        content: dict[str, Any] = json.loads(storage.read_bytes(url))
    except OSError as error:
        raise RefusedError(f"{out}: no results of Chorus ({storage.explain(error, url)})") from error
    return content


def earlier_choice(out: str) -> tuple[Backend, int | None] | None:
    """Return the backend and the tiles per call of the run that is in `out`; None if there is none."""
    if not storage.exists(storage.join(out, "run.json")):
        return None
    settings = read_run(out).get("settings", {})
    return settings.get("backend", "eager"), settings.get("batch")


def open_output(record: RunRecord, out: str, *, overwrite: bool) -> bool:
    """Check that `out` is new, or holds a run of the same settings; return whether it is new.

    Raises
    ------
    RefusedError
        If it holds other results; the message says what differs, and the two ways out.
    """
    known = earlier_run(out, lambda known: _differences(record, known, out), overwrite=overwrite)
    if known is not None:
        record.content["started"] = known["started"]
        counted = known.get("summary") or known
        record.content |= {name: counted.get(name, 0) for name in ("repeated", "smaller_batch")}
    return known is None


def earlier_run(
    out: str, differences: Callable[[dict[str, Any]], list[str]], *, overwrite: bool
) -> dict[str, Any] | None:
    """Return ``run.json`` of the run to resume in `out`; None if `out` is new or to be cleared.

    Parameters
    ----------
    differences : takes an earlier ``run.json`` and describes what defines its results and differs now

    Raises
    ------
    RefusedError
        If it holds other results; the message says what differs, and the two ways out.
    """
    with storage_errors(out):
        present = storage.entries(out)
    if "run.json" in present:
        known = read_run(out)
        found = differences(known)
        if not found:
            return known
        if not overwrite:
            raise RefusedError(
                f"{out}: holds results of another run ({'; '.join(found)}); use --overwrite to replace them, or "
                f"another --out"
            )
    elif set(present) - {"run.lock"}:  # --overwrite never removes files of others
        raise RefusedError(f"{out}: is not empty and holds no run of Chorus; choose another --out")
    return None


def clear_output(out: str) -> None:
    """Remove what an earlier run made in `out`, and nothing else."""
    with storage_errors(out):
        present = storage.entries(out)
        for entry in ENTRIES:
            if entry in present:
                remove_folder(storage.join(out, entry))


def _saved(outcome: Outcome, content: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of forward passes that adaptive effort saved, by tiles; nothing with full effort."""
    rows = [row for row in outcome.rows if row.get("samples") is not None]
    if content["settings"]["effort"] != "adaptive" or not rows:
        return {}
    everything = content["ensemble"]["members"] * len(content["settings"]["augmentations"])
    tiles = sum(row["tiles"] for row in rows)
    drawn = math.fsum(row["samples"] * row["tiles"] for row in rows)
    return {"passes_saved": round(1 - drawn / (tiles * everything), 4)}


def _differences(record: RunRecord, known: dict[str, Any], out: str) -> list[str]:
    """Describe what defines the result and differs."""
    found = setting_differences(record.defining["settings"], known)
    if known.get("ensemble", {}).get("hash") != record.defining["ensemble"]:
        found.append(f"ensemble was {known.get('ensemble', {}).get('name')}, now another or changed")
    if known.get("sources") != record.defining["sources"]:
        found.append(f"sources were {' '.join(known.get('sources', []))}, now {' '.join(record.defining['sources'])}")
    elif not _same_images(record, known.get("inputs", {}), out):
        found.append("the images of the sources changed (their number, shapes or types)")
    return found


def setting_differences(settings: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Describe the settings that differ from those of an earlier ``run.json``."""
    earlier = known.get("settings", {})
    return [f"{k} was {earlier.get(k)}, now {value}" for k, value in settings.items() if earlier.get(k) != value]


def _same_images(record: RunRecord, inputs: dict[str, Any], out: str) -> bool:
    """Return whether the images are those of the earlier run, apart from those that could not be planned."""
    if inputs.get("sha256") == record.table.digest:
        return True
    try:
        earlier = ImageTable.read(storage.join(out, *PLAN))
    except OSError:
        return False
    return earlier.without(record.failed).same_images(record.table.without(inputs.get("failed", [])))


def _write(url: str, data: bytes) -> None:
    with storage_errors(url):
        storage.write_bytes(url, data)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
