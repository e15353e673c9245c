"""Every score that the registry declares reaches every consumer, in words where a person reads."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient

from chorus.cluster.runs.finish_image import failed_row
from chorus.cluster.state.scores import read_scores, scores_frame, write_scores
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.reference.flags import flag_images
from chorus.pipeline.reference.marginals import all_scores, quality_scores, side_of
from chorus.pipeline.reference.reasons import sentence
from chorus.pipeline.reference.reference import calibrate_from
from chorus.pipeline.reference.storage import read_reference, reference_url, write_reference
from chorus.pipeline.report.page import write_report
from chorus.pipeline.scores.documentation import with_tables
from chorus.pipeline.scores.flag_registry import FLAG_NAMES, FLAGS
from chorus.pipeline.scores.ranking import rank
from chorus.pipeline.scores.registry import FLAG_TABLE, IMAGE_TABLE, SCORES, STATED, column_of, score_columns
from chorus.pipeline.scores.score import Column, Score
from chorus.pipeline.shift.hypothesis_tests import kind_of
from chorus.pipeline.shift.shift import find_shift
from chorus.serving.contract.schemas import Prediction, numbers
from chorus.serving.review.app import review_app
from tests.support.making import write_light_ensemble
from tests.support.paths import ROOT
from tests.support.reports import Page, write_tables
from tests.support.rows import image_row
from tests.support.running import Chorus
from tests.support.simulated import simulated

CLASSES, CHANNELS = ["nucleus", "cell"], ["dna", "actin"]
COLUMNS = score_columns(CLASSES, CHANNELS)
DOCS = ("README.md", "docs/glossary.md", "docs/trust.md")


def tables(images: int, seed: int, prefix: str = "image") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores with every column, and an evaluation."""
    made = simulated(images, seed, prefix=prefix)
    rng = np.random.default_rng(seed)
    scores = made.scores[["name", "status", "message"]].assign(image="", source="/nowhere")
    values = {column.key: made.scores.get(column.key, pd.Series(rng.random(images))) for column in COLUMNS}
    return scores.assign(**values), made.evaluation


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 images, the last of which is unusual in all, with flags, an evaluation and a reference set."""
    folder = tmp_path_factory.mktemp("run")
    ensemble = write_light_ensemble(folder / "ensemble", members=1, classes=[{"name": n} for n in ("no", *CLASSES)])
    digest = read_ensemble(str(ensemble)).hash
    known, truth = tables(60, 0)
    reference = calibrate_from(known, truth, ensemble=digest)
    write_reference(str(ensemble), reference)
    scores, evaluation = tables(20, 1)
    unusual = [-3.0 if column.low_is_bad else 3.0 for column in COLUMNS]
    scores.loc[19, [column.key for column in COLUMNS]] = unusual
    out = folder / "out"
    write_tables(out, [])
    scores.to_parquet(out / "scores.parquet")
    flag_images(scores, reference).to_parquet(out / "flags.parquet")
    evaluation.to_parquet(out / "evaluation.parquet")
    (out / "shift.json").write_text(find_shift(scores, reference).model_dump_json())
    content = json.loads((out / "run.json").read_text())
    content["ensemble"] = {"name": "nuclei", "url": str(ensemble), "hash": digest, "members": 1}
    content["ensemble"]["classes"] = [{"name": name} for name in ("no", *CLASSES)]
    (out / "run.json").write_text(json.dumps(content))
    return out


def shown() -> list[Column]:
    """Columns that a report and a review page of `run` show."""
    others = [score.column() for score in SCORES if score.table in ("flags", "evaluation")]
    return [*others, *COLUMNS]


def raw(key: str) -> re.Pattern[str]:
    """The name of a column where a person would read it as such; names of one word are words."""
    return re.compile(rf"(?<![\w:.]){re.escape(key)}(?![\w:])") if "_" in key or ":" in key else re.compile(r"(?!)")


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.pattern)
def test_a_declaration_is_complete(score: Score) -> None:
    column = score.column("" if score.per == "image" else "x")
    assert column_of(column.key) == column
    assert score.label
    assert score.meaning
    assert not score.meaning.endswith(".")
    assert not re.search(r"[_:]", score.label)
    assert (score.from_regions is None) + (score.from_appearance is None) == (1 if score.table == "scores" else 2)
    assert side_of(column.key) == ("high" if score.doubtful == "neither" else score.doubtful)
    if score.former:
        assert column_of(column.key.replace(score.name, score.former)) == column
    said = sentence(column, 0.25, 4.2)
    assert not raw(column.key).search(said)
    assert "{" not in said
    if score.per != "image":
        assert "x" in said


def test_rows_of_images_have_a_column_for_every_score(run: Path) -> None:
    ensemble = read_ensemble(str(run.parent / "ensemble"))
    row = failed_row("", "/nowhere", "a", ensemble, "why").columns
    columns = [column.key for column in score_columns(CLASSES, ensemble.spec.input.channels)]
    assert [name for name in row if column_of(name)] == [*columns, "tiles"]
    assert {column.score for column in map(column_of, columns) if column} == set(IMAGE_TABLE)
    assert numbers(row) == dict.fromkeys(columns) | {"tiles": 0}


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.key)
def test_ranking_begins_at_the_doubtful_end(column: Column, run: Path, chorus: Chorus) -> None:
    scores = read_scores(str(run))
    first = rank(scores, column.key).ranked.iloc[0]["name"]
    wanted = scores[column.key].idxmin() if column.score.doubtful == "low" else scores[column.key].idxmax()
    assert first == scores["name"][wanted]
    printed = chorus("rank", run, "--by", column.key, "--top", 1).out
    assert f"images by {column.phrase}, worst first" in printed
    assert not raw(column.key).search(printed)


def test_the_reference_set_keeps_what_detects_and_estimates_quality_from_what_is_declared(run: Path) -> None:
    scores = read_scores(str(run))
    kept = [column for column in COLUMNS if column.score.quality or column.score.detects]
    assert set(all_scores(scores)) == {column.key for column in kept}
    assert set(quality_scores(scores)) == {column.key for column in COLUMNS if column.score.quality}
    reference = read_reference(str(run.parent / "ensemble"))
    assert set(reference.detector_scores) == {column.key for column in kept}
    assert all(f"sigma:{column.key}" in pd.read_parquet(run / "flags.parquet") for column in kept)


def test_flags_of_every_image_have_what_is_stated_of_it_and_reasons_in_words(run: Path, chorus: Chorus) -> None:
    flagged = pd.read_parquet(run / "flags.parquet")
    assert {score.name for score in FLAG_TABLE} <= set(flagged.columns)
    worst = flagged[flagged["name"] == "image-0019"].iloc[0]
    assert "ood" in worst["flags"]
    printed = chorus("flag", run, "-e", run.parent / "ensemble").out
    for score in STATED:
        assert score.label in printed
        assert not raw(score.name).search(printed)
    assert "out of distribution" in printed
    for column in COLUMNS:
        assert not any(raw(column.key).search(reason) for reason in worst["reasons"])


def test_the_report_shows_every_score_in_words(run: Path) -> None:
    page = Page(write_report(str(run), top=1))
    labels = {one["label"]: one for one in page.data["quantities"]}
    assert list(labels) == [column.label for column in sorted(shown(), key=lambda one: SCORES.index(one.score))]
    for column in shown():
        one = labels[column.label]
        assert (one["digits"], one["first"]) == (column.digits, column.listed)
        assert column.label in page.words
    said = json.dumps([row[4:] for row in page.data["inline"]["rows-0"]])
    visible = page.words[: page.words.index('{"')] + said  # what follows is the script's
    for column in shown():
        assert not raw(column.key).search(visible)
    labels_of_flags = {flag.name: flag.label for flag in FLAGS} | {"review": "to review"}
    assert page.data["mark_labels"] == [labels_of_flags.get(mark, mark) for mark in page.data["marks"]]


def test_the_review_page_sorts_by_every_score_and_draws_it(run: Path) -> None:
    client = TestClient(review_app(str(run)))
    about = client.get("/api/run").json()
    quantities = {one["key"]: one for one in about["quantities"]}
    assert set(quantities) == {column.key for column in shown()}
    assert set(FLAG_NAMES) < set(about["flag_labels"])
    for column in shown():
        one = quantities[column.key]
        assert (one["label"], one["digits"], one["low_is_bad"]) == (column.label, column.digits, column.low_is_bad)
        rows = client.get("/api/images", params={"sort": column.key}).json()["rows"]
        values = [row["values"][column.key] for row in rows if row["values"][column.key] is not None]
        assert values == sorted(values, reverse=not column.low_is_bad)
        drawn = client.get("/api/distribution", params={"score": column.key}).json()
        assert drawn["label"] == column.label
        assert (drawn["reference"] is not None) == (column.in_reference is not None and column.key in known(run))


def known(run: Path) -> set[str]:
    """Scores that the reference set of `run` can be compared by."""
    kept = set(read_reference(str(run.parent / "ensemble")).scores)
    return kept | {score.name for score in SCORES if score.reference}


def test_runs_are_compared_by_every_score_of_a_kind_and_the_outcome_is_in_words(run: Path, chorus: Chorus) -> None:
    kept = json.loads((run / "shift.json").read_text())
    compared = {test["name"] for test in kept["tests"]}
    assert compared == {column.key for column in COLUMNS if column.score.kind and column.key in known(run)}
    printed = chorus("shift", run, "-e", run.parent / "ensemble").out
    for column in COLUMNS:
        assert (kind_of(column.key) or None) == column.score.kind
        assert (column.phrase in printed) == (column.key in compared)
        assert not raw(column.key).search(printed)


@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
def test_exported_tables_have_every_score(kind: str, run: Path, chorus: Chorus, tmp_path: Path) -> None:
    assert chorus("export", "tables", run, "--out", tmp_path / "to", "--format", kind).code == 0
    data = io.BytesIO((tmp_path / "to" / f"images.{kind}").read_bytes())
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "json": pd.read_json}[kind]
    table = read(data)
    assert {column.key for column in shown() if column.score.table != "evaluation"} <= set(table.columns)


def test_the_server_states_what_flag_states() -> None:
    assert {score.name for score in STATED} <= set(Prediction.model_fields)
    assert {score.name for score in FLAG_TABLE if not score.listed}.isdisjoint(Prediction.model_fields)


@pytest.mark.parametrize("name", DOCS)
def test_tables_of_the_docs_are_those_of_the_registry(name: str) -> None:
    text = (ROOT / name).read_text()
    assert with_tables(text) == text, "run `make score-tables`"


def test_the_docs_name_every_score_and_every_flag() -> None:
    text = "".join((ROOT / name).read_text() for name in DOCS)
    assert [score.pattern for score in SCORES if f"`{score.pattern}`" not in text] == []
    assert [flag.name for flag in FLAGS if f"| `{flag.name}` |" not in text] == []


def formerly(column: Column) -> str:
    return column.key.replace(column.score.name, column.score.former or column.score.name)


def test_files_of_earlier_versions_are_read_with_their_former_names(run: Path, chorus: Chorus, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    former = {column.key: formerly(column) for column in shown() if column.score.former}
    assert {"patch_uncertainty_max", "area_fraction:nucleus", "ood_score"} <= set(former)
    pd.read_parquet(run / "scores.parquet").rename(columns=former).to_parquet(old / "scores.parquet")
    flags = pd.read_parquet(run / "flags.parquet").rename(columns=former)
    flags["flags"] = [["foreign" if flag == "ood" else flag for flag in raised] for raised in flags["flags"]]
    flags.to_parquet(old / "flags.parquet")
    (old / "run.json").write_bytes((run / "run.json").read_bytes())
    pd.testing.assert_frame_equal(read_scores(str(old)), read_scores(str(run)))
    assert (
        chorus("rank", old, "--by", "foreground_fraction:nucleus").out
        == chorus("rank", run, "--by", "area_fraction:nucleus").out
    )
    views = [Page(write_report(str(out), top=0)).data for out in (old, run)]
    assert [one["marks"] for one in views[:1]] == [one["marks"] for one in views[1:]]
    assert {one["label"] for one in views[0]["quantities"]} == {one["label"] for one in views[1]["quantities"]} - {
        "Measured Dice"
    }
    beside = chorus("export", "tables", old, "--out", tmp_path / "to", "--format", "parquet")
    assert beside.code == 0
    exported = pd.read_parquet(tmp_path / "to" / "images.parquet")
    assert {"ood_score", "patch_uncertainty_max"} <= set(exported.columns)
    assert any("ood" in raised for raised in exported["flags"])


def test_rows_that_an_earlier_version_recorded_continue_under_present_names(tmp_path: Path) -> None:
    write_scores(str(tmp_path), [image_row("a", uncertainty_patch_max=0.2)])
    scores = read_scores(str(tmp_path))
    assert "uncertainty_patch_max" not in scores
    assert scores["patch_uncertainty_max"].tolist() == [0.2]
    rows = [image_row("a", **{"foreground_fraction:x": 0.5}), image_row("b", **{"area_fraction:x": 0.25})]
    assert scores_frame(rows)["area_fraction:x"].tolist() == [0.5, 0.25]


def test_a_reference_set_of_an_earlier_version_judges_as_before(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ensemble"
    ensemble = write_light_ensemble(folder, members=1, classes=[{"name": n} for n in ("no", *CLASSES)])
    reference = read_reference(str(run.parent / "ensemble"))
    write_reference(str(ensemble), reference.model_copy(update={"ensemble": read_ensemble(str(ensemble)).hash}))
    path = Path(reference_url(str(ensemble)).removeprefix("file://"))
    text = path.read_text().replace("area_fraction:", "foreground_fraction:")
    path.write_text(text.replace("patch_uncertainty_max", "uncertainty_patch_max"))
    scores = read_scores(str(run))
    found, wanted = (flag_images(scores, one) for one in (read_reference(str(ensemble)), reference))
    pd.testing.assert_frame_equal(found, wanted)
    assert not math.isnan(found["p_value"].iloc[0])
