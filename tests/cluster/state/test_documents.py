"""``run.json`` and the rows of images: as they were, round trips, and one sentence where they are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from chorus.cluster.planning.devices.device_probe import DeviceProbe
from chorus.cluster.state.documents import Calibration, ImageRow, PredictRecord
from chorus.cluster.state.output import ENTRIES, earlier_run, read_run
from chorus.cluster.state.progress import run_state
from chorus.cluster.state.results import finished_run, settings_of
from chorus.pipeline.core.run_document import (
    Document,
    ObjectCounts,
    PredictDocument,
    PredictSummary,
    Price,
    RunDocument,
    SessionAccount,
)
from chorus.pipeline.errors import ChorusError, DamagedError, RefusedError
from chorus.pipeline.report.documents import classes_of
from chorus.pipeline.scores.registry import score_columns

SETTINGS: dict[str, Any] = {
    "channel": [], "level": None, "diameter": None, "tile": 32, "overlap": 0.5, "augmentations": ["identity", "hflip"],
    "effort": "full", "batch": 1, "precision": "fp32", "backend": "eager", "device": "cpu", "threads": 1, "region": 64,
    "chunk": 32, "save": ["probability", "uncertainty"], "dtype": "float16", "strict": False, "in_place": False,
    "volumes": None, "bound": None,
}  # fmt: skip
RUN: dict[str, Any] = {
    "started": "2026-11-30T19:22:13.778716+00:00",
    "finished": "2026-11-30T19:22:25.647190+00:00",
    "outcome": "failures",
    "settings": SETTINGS,
    "run": {"executor": "serial", "address": None, "cluster": None, "profile": False},
    "sources": ["/data/in"],
    "inputs": {"sha256": "74e7", "images": 3, "regions": 19, "failed": ["bad.ome.zarr"]},
    "ensemble": {
        "name": "light",
        "url": "/data/e/ensemble.yaml",
        "hash": "c035",
        "members": 3,
        "classes": [{"name": "background", "color": "#000000"}, {"name": "nucleus", "color": "#4daf4a"}],
    },
    "chorus": "0.1.0",
    "versions": {"python": "3.11.7", "chorus-bioimage": "0.1.0"},
    "machine": {"system": "Linux", "cores": 2},
    "calibration": {
        "weights": 91608, "activations": 2048000, "process": 1006444544, "device_memory": 17428915814,
        "seconds_per_tile": 0.0091910179999104, "device": "2 cores", "kind": "cpu",
    },
    "summary": {
        "images": 4, "done": 3, "empty": 0, "failed": 1, "regions": 19, "repeated": 0, "smaller_batch": 0, "tiles": 237,
        "passes_saved": 0.25, "seconds": 11.9, "measured_seconds": 4.0, "device_busy": 0.673,
        "seconds_per_tile": 0.011404071877641322, "predicted_seconds": 2.2, "measured_over_predicted": 1.843,
        "cost": {"amount": 0.0125, "currency": "CHF"},
        "objects": {"method": "components", "counts": {"nucleus": 37}, "failed": 0},
    },
}  # fmt: skip
"""``run.json`` as it was written before it had a model."""
TEXT = json.dumps(RUN, indent=2).encode()


def written(folder: Path, data: bytes = TEXT) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_bytes(data)
    return str(folder)


def test_a_run_that_was_written_before_is_written_again_with_the_same_bytes(tmp_path: Path) -> None:
    assert finished_run(written(tmp_path)).written() == TEXT


def test_a_run_that_goes_on_has_counts_and_no_summary() -> None:
    begun = {name: value for name, value in RUN.items() if name not in ("summary", "calibration")}
    begun |= {"finished": None, "outcome": "running"}
    order = [*list(begun)[:3], "repeated", "smaller_batch", *list(begun)[3:]]
    begun = {name: (begun | {"repeated": 2, "smaller_batch": 0})[name] for name in order}
    text = json.dumps(begun, indent=2).encode()
    assert PredictRecord.model_validate_json(text).written() == text


def test_every_field_has_its_place_in_the_file() -> None:
    (_, *fields), names = PredictRecord.model_fields, list(RUN)
    assert set(fields) == {*names, "repeated", "smaller_batch", "reference", "unjudged"}


@pytest.mark.parametrize(
    "judging", [{"reference": {"images": 30, "tau": 0.8, "alpha": 0.1}}, {"unjudged": "there is no reference set"}]
)
def test_a_run_says_after_its_ensemble_by_what_its_images_are_judged(judging: dict[str, object]) -> None:
    at = list(RUN).index("ensemble") + 1
    text = json.dumps(dict([*list(RUN.items())[:at], *judging.items(), *list(RUN.items())[at:]]), indent=2).encode()
    assert PredictRecord.model_validate_json(text).written() == text


def test_fields_of_later_versions_do_not_hinder(tmp_path: Path) -> None:
    later = RUN | {"new": 1, "ensemble": RUN["ensemble"] | {"new": []}, "settings": SETTINGS | {"new": "x"}}
    run = finished_run(written(tmp_path, json.dumps(later).encode()))
    assert run.settings.content["new"] == "x"
    assert run.summary == PredictSummary.model_validate(RUN["summary"])
    with pytest.raises(DamagedError, match=r"its settings: is damaged \(field new: .*\); run `chorus predict` anew"):
        settings_of(run, str(tmp_path))


def test_what_a_run_says_is_typed(tmp_path: Path) -> None:
    out = written(tmp_path)
    run = finished_run(out)
    assert (run.settings.in_place, run.settings.save, run.settings.batch) == (False, ("probability", "uncertainty"), 1)
    assert (run.inputs.failed, run.ensemble.members) == (("bad.ome.zarr",), 3)
    assert run.summary is not None
    assert run.summary.cost == Price(amount=0.0125, currency="CHF")
    assert run.summary.objects == ObjectCounts(method="components", counts={"nucleus": 37}, failed=0)
    assert run.calibration is not None
    assert run.calibration.probe == DeviceProbe(91608, 2048000, 1006444544, 17428915814, 0.0091910179999104, "2 cores")
    assert Calibration.of(run.calibration.probe, "cpu") == run.calibration
    later = {"region_depth": None, "chunk_depth": None}  # fields that came after this document
    assert settings_of(run, out).model_dump(mode="json") == SETTINGS | later
    assert [(one.name, one.color) for one in classes_of(run)] == [("background", "#000000"), ("nucleus", "#4daf4a")]
    state = run_state(out, count=False)
    assert state is not None
    assert (state.outcome, state.images, state.images_done, state.failed) == ("failures", 4, 3, 1)


def test_the_account_of_a_session_replaces_that_of_the_session_before() -> None:
    summary = PredictSummary.model_validate(RUN["summary"])
    again = summary.accounted(SessionAccount(measured_seconds=1.0))
    assert again.model_dump(exclude_unset=True)["measured_seconds"] == 1.0
    assert (again.cost, again.predicted_seconds, again.objects) == (None, None, summary.objects)


@pytest.mark.parametrize("kind", [PredictDocument, RunDocument])
def test_a_run_of_another_command_is_told_apart(kind: type[RunDocument], tmp_path: Path) -> None:
    # Fields of the same names mean something else there.
    content = RUN | {
        "command": "train",
        "inputs": {"images": ["a"]},
        "settings": {"batch": "auto"},
        "summary": {"seconds": "x"},
    }
    out = written(tmp_path, json.dumps(content).encode())
    assert read_run(out, kind).command == "train"
    assert read_run(out, RunDocument).content == content
    assert run_state(out, count=False) is None
    with pytest.raises(RefusedError, match="holds no predictions, it is of `chorus train`"):
        finished_run(out)


@given(st.integers(0, len(TEXT) - 1))
def test_a_run_document_cut_at_any_byte_is_one_sentence(tmp_path_factory: pytest.TempPathFactory, end: int) -> None:
    folder = tmp_path_factory.mktemp("cut", numbered=True)
    out = written(folder, TEXT[:end])
    for read in (finished_run, lambda out: run_state(out, count=True), lambda out: read_run(out, RunDocument)):
        with pytest.raises(DamagedError) as caught:
            read(out)
        assert str(caught.value).startswith(f"{out}/run.json: is damaged (")
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith("; run the command that made it again, with --overwrite")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.dictionaries(st.sampled_from([*RUN, "name"]), inner),
)


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_garbage_in_place_of_a_run_document_is_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    out = written(tmp_path_factory.mktemp("garbage", numbered=True), data)
    with pytest.raises(ChorusError) as caught:
        finished_run(out)
    assert str(caught.value).startswith(out)
    assert "\n" not in str(caught.value)


def test_a_damaged_run_is_replaced_where_asked_and_where_nothing_of_others_is_there(tmp_path: Path) -> None:
    out = written(tmp_path / "out", TEXT[:-5])
    (tmp_path / "out" / "ledger").mkdir()

    def earlier(*, overwrite: bool) -> PredictDocument | None:
        return earlier_run(out, PredictDocument, lambda known: [], overwrite=overwrite)

    with pytest.raises(DamagedError, match="--overwrite"):
        earlier(overwrite=False)
    assert earlier(overwrite=True) is None
    (tmp_path / "out" / "thesis.txt").write_text("of others")
    with pytest.raises(DamagedError):
        earlier(overwrite=True)
    assert "thesis.txt" not in ENTRIES


COLUMNS = [column.key for column in score_columns(["nucleus", "cell"], ["dna"])]
ORDER = ["image", "source", "name", "status", "message", *COLUMNS, "regions", "tiles", "seconds", "samples"]
ROWS = st.fixed_dictionaries(
    {"image": st.text(), "source": st.text(), "name": st.text(), "status": st.sampled_from(["done", "empty", "failed"])}
    | {"message": st.text()}
    | {name: st.none() | st.floats(allow_nan=False, allow_infinity=False) for name in COLUMNS}
    | {"regions": st.integers(0, 10**6), "tiles": st.integers(0, 10**6), "seconds": st.floats(0, 1e6)},
    optional={"samples": st.floats(1, 100)},
).map(lambda drawn: {name: drawn[name] for name in ORDER if name in drawn})


@given(ROWS)
def test_a_row_is_flat_in_its_record_and_comes_back(content: dict[str, Any]) -> None:
    row = ImageRow.model_validate(content)
    assert row.columns == content
    assert list(row.columns) == list(content)
    assert json.loads(row.model_dump_json()) == content
    assert ImageRow.model_validate_json(row.model_dump_json()) == row
    assert row.failed("why").columns == content | {"status": "failed", "message": "why"}


def test_a_row_takes_numbers_alone_as_scores() -> None:
    with pytest.raises(ValidationError, match=r"scores\.uncertainty"):
        ImageRow.model_validate({"image": "", "source": "", "name": "a", "status": "done", "uncertainty": "high"})


def test_documents_are_frozen() -> None:
    kinds: list[type[Any]] = [ImageRow, RunDocument, PredictDocument, PredictRecord, *Document.__subclasses__()]
    assert all(kind.model_config["frozen"] for kind in kinds)
