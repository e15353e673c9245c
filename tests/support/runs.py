"""Runs in this process, and whether their results are the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.documents import PredictOutcome
from chorus.cluster.state.scores import read_scores
from chorus.pipeline.io import storage

PER_CUT = ["seconds", "tiles", "regions"]
"""Columns of the scores that say how a run was cut, not what it found."""


def run(source: Path, ensemble: Path, out: Path | str, **options: Any) -> PredictOutcome:
    """A run in this process that gets through; see `start`."""
    outcome = start(source, ensemble, out, **options)
    assert outcome.state == "complete", outcome.rows
    return outcome


def start(
    source: Path, ensemble: Path, out: Path | str, *, stages: int = 1, overwrite: bool = False, **settings: Any
) -> PredictOutcome:
    """A run in this process, its members all together or in `stages` groups."""
    spread = {"placement": "staged", "stages": stages} if stages > 1 else {"placement": "replicated"}
    return predict(
        PredictRequest(
            sources=[str(source)],
            ensemble=str(ensemble),
            out=str(out),
            settings=ResultSettings(**{"region": 64, "chunk": 32} | settings),
            run=RunSettings(executor="serial", **spread),
            overwrite=overwrite,
        ),
        Silent(),
    )


def arrays(out: Path | str) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    """Shape, type and content of every array of the results, all pyramid levels."""
    found = {}
    fs, path = storage.filesystem(f"{out}/images")
    pending: list[tuple[str, Any]] = []
    for name in (storage.basename(entry) for entry in fs.ls(path, detail=False)):
        store = storage.store(f"{out}/images/{name}", read_only=True)
        pending.append((name, zarr.open_group(store, mode="r")))
    while pending:
        name, node = pending.pop()
        if isinstance(node, zarr.Array):
            found[name] = (tuple(node.shape), str(node.dtype), np.asarray(node[...]).tobytes())
        else:
            pending += [(f"{name}/{key}", child) for key, child in node.members()]
    return found


def scores(out: Path | str) -> pd.DataFrame:
    return read_scores(str(out)).drop(columns=PER_CUT)


def assert_same_results(first: Path, *others: Path) -> None:
    expected = arrays(first)
    assert expected
    for other in others:
        found = arrays(other)
        assert found.keys() == expected.keys()
        for name, content in expected.items():
            assert found[name] == content, f"{other.name}: {name}"
        pd.testing.assert_frame_equal(scores(first), scores(other), check_exact=True)
        assert (other / "features.parquet").read_bytes() == (first / "features.parquet").read_bytes()
