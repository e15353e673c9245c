"""A run whose results are cut, emptied or removed: the same command makes the same bytes again, or says why not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.documents import PredictOutcome
from chorus.cluster.state.scores import read_features, read_scores
from chorus.pipeline.errors import ChorusError
from chorus.pipeline.report.page import write_report
from tests.support.making import pixels, write_image, write_light_ensemble
from tests.support.runs import PER_CUT

# More than one region, with and without neighbours, and one that is background only in parts.
IMAGES = {"a.ome.zarr": (70, 90), "b.ome.zarr": (40, 64)}
DAMAGE = st.one_of(st.none(), st.just(0.0), st.floats(0, 1, exclude_max=True))


def command(folder: Path, out: Path, *, verify: bool = False) -> PredictOutcome:
    """What `chorus predict` does."""
    outcome = predict(
        PredictRequest(
            sources=[str(folder / "in")],
            ensemble=str(folder / "e"),
            out=str(out),
            settings=ResultSettings(region=64, chunk=32),
            run=RunSettings(executor="serial", verify=verify),
            objects="watershed",
        ),
        Silent(),
    )
    write_report(str(out))
    return outcome


def results(out: Path) -> dict[str, bytes]:
    """All files of the results; the page says when it was made."""
    files = (path for name in ("images", "report") for path in (out / name).rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in files if path.name != "index.html"}


def assert_same(out: Path, done: Path) -> None:
    expected, found = results(done), results(out)
    assert found.keys() == expected.keys()
    assert [path for path, data in expected.items() if found[path] != data] == []
    for read in (lambda of: read_scores(of).drop(columns=[*PER_CUT, "source"]), read_features):
        assert read(str(out)).equals(read(str(done)))
    assert (out / "objects.parquet").read_bytes() == (done / "objects.parquet").read_bytes()
    assert (out / "report" / "index.html").stat().st_size > 10_000


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done")
    for name, shape in IMAGES.items():
        write_image(folder / "in" / name, pixels(shape), "yx")
    measured = {"channels": ["dna"], "normalisation": {"kind": "percentile", "low": 1, "high": 99.8}}
    write_light_ensemble(folder / "e", members=2, width=2, tile=32, augmentations=["identity"], input=measured)
    assert command(folder, folder / "out").state == "complete"
    return folder


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Callable[[], Path]:
    """Copies of the finished run, each in a folder of its own."""
    return lambda: Path(shutil.copytree(done / "out", tmp_path / f"{len(list(tmp_path.iterdir()))}"))


def damage(path: Path, share: float | None) -> None:
    """Cut a file after a share of its bytes; None removes it."""
    if share is None:
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])


@settings(
    max_examples=int(os.environ.get("CHORUS_DAMAGED_FILES", "15")),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
@given(share=DAMAGE, data=st.data())
def test_any_file_that_is_cut_or_removed_is_made_anew_or_told_of(
    share: float | None, data: st.DataObject, done: Path, again: Callable[[], Path]
) -> None:
    out = again()
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file() and path.name != "run.lock")
    chosen = out / data.draw(st.sampled_from(files))
    damage(chosen, share)
    if chosen.name == "run.json":
        with pytest.raises(ChorusError, match=r"run\.json: is damaged|holds no run of Chorus"):
            command(done, out)
        return
    outcome = command(done, out)
    assert outcome.state == "complete", outcome.rows
    assert_same(out, done / "out")
    shutil.rmtree(out)
