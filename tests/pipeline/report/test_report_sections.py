"""What other commands have found is on the page, what is damaged is said, and what to cite is right."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.reference.flags import flag_images, review
from chorus.pipeline.reference.reference import calibrate_from
from chorus.pipeline.reference.storage import reference_url, write_reference
from chorus.pipeline.reference.words import NO_REFERENCE
from chorus.pipeline.report.page import write_report
from tests.support.making import write_light_ensemble
from tests.support.reports import Page, write_tables
from tests.support.simulated import simulated

MOVED = {"reference_median": None, "run_median": 3.5, "low": None, "high": None, "p": 1e-10}
SHIFT = {
    "format": "chorus-shift/1",
    "reference_images": 60,
    "images": 30,
    "alpha": 0.05,
    "tests": [
        MOVED | {"kind": "noise", "name": "calm", "effect": 0.1, "p_adjusted": 0.5, "shifted": False},
        MOVED | {"kind": "noise", "name": "bright & <new>", "effect": 0.9, "p_adjusted": 1e-9, "shifted": True},
    ],
    "groups": [
        {
            "by": "plate",
            "score": "uncertainty",
            "p": 0.001,
            "p_adjusted": 0.002,
            "measure": "epsilon squared",
            "effect": 0.4,
            "shifted": True,
            "levels": [{"name": f"plate-{index}", "images": 3, "median": index / 100} for index in range(30)],
        }
    ],
    "plates": [],
    "sentences": ["The run is brighter than the reference."],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 30 images, ten of them unfamiliar and hard, by an ensemble with a reference of 60."""
    about = {"cite": [{"text": "Someone et al. (2020)", "doi": "10.1/2"}], "limits": "none known"}
    ensemble = write_light_ensemble(tmp_path / "ensemble", members=1, about=about)
    known = simulated(60, seed=0)
    digest = read_ensemble(str(ensemble)).hash
    reference = calibrate_from(known.scores, known.evaluation, known.features, ensemble=digest)
    write_reference(str(ensemble), reference)
    parts = [simulated(20, seed=1), simulated(10, seed=2, difficulty=8, feature_shift=3, prefix="strange")]
    scores, features, evaluation = (
        pd.concat([getattr(one, name) for one in parts], ignore_index=True)
        for name in ("scores", "features", "evaluation")
    )
    out = tmp_path / "out"
    write_tables(out, [])
    scores.assign(image="", source="/nowhere").to_parquet(out / "scores.parquet")
    flagged = flag_images(scores, reference, features)
    flagged["review"] = flagged["name"].isin(review(flagged, 0.1).look_at)
    flagged.to_parquet(out / "flags.parquet")
    evaluation.to_parquet(out / "evaluation.parquet")
    metrics = {"dice": {"mean": 0.87, "low": 0.8, "high": 0.9, "images": 30}}
    (out / "evaluation.json").write_text(json.dumps({"truth": "masks/", "images": {"all": 30}, "metrics": metrics}))
    (out / "shift.json").write_text(json.dumps(SHIFT))
    sentinels = [{"name": "s1", "class": "nucleus", "stored": 0.9, "found": 0.7, "tolerance": 0.01, "moved": True}]
    (out / "sentinels.json").write_text(json.dumps(sentinels))
    change(out, ensemble={"name": "nuclei", "url": str(ensemble), "hash": digest, "members": 1})
    return out


def change(out: Path, **parts: Any) -> None:
    """Replace parts of ``run.json``."""
    path = out / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def section(page: Page, name: str) -> str:
    """The words of a section."""
    return page.source.split(f'<section id="{name}">')[1].split("</section>")[0]


def test_images_stand_in_the_order_of_their_risk_with_flags_and_reasons(run: Path) -> None:
    page = Page(write_report(str(run), top=3))
    flags = pd.read_parquet(run / "flags.parquet")
    rows = page.data["inline"]["rows-0"]
    assert [row[0] for row in rows] == flags["name"].tolist()
    assert [row[4] for row in rows] == [list(said) for said in flags["reasons"]]
    marks = np.frombuffer(base64.b64decode(page.data["inline"]["marks"]), "<u2")
    for name in ("poor", "ood", "review"):
        bit = 1 << page.data["marks"].index(name)
        wanted = flags["review"] if name == "review" else flags["flags"].map(lambda raised, name=name: name in raised)
        assert [bool(mark & bit) for mark in marks] == wanted.tolist()
    assert f'<h3><span class="rank">1</span> {flags["name"][0]}' in page.source
    assert '<b>10</b> <span class="soft">(33.3 %)' in page.source


def test_distributions_stand_against_the_reference_and_dice_against_what_was_measured(run: Path) -> None:
    page = Page(write_report(str(run), top=0))
    known, own = simulated(60, seed=0).scores, pd.read_parquet(run / "scores.parquet")
    said = f"median {own['uncertainty'].median():.3g}, reference {known['uncertainty'].median():.3g}"
    assert said in section(page, "scores")
    assert section(page, "scores").count("<svg") == len(page.data["quantities"]) - 5
    assert section(page, "measured").count("<svg") == 2
    assert "0.870 (0.800 to 0.900)" in section(page, "measured")


def test_plots_take_the_colours_of_the_page(run: Path) -> None:
    page = Page(write_report(str(run), top=0))
    plots = section(page, "scores")
    assert "var(--accent)" in plots
    assert "var(--reference)" in plots
    assert "fill: #" not in plots
    assert "stroke: #" not in plots


def test_shift_and_sentinels_say_first_what_moved(run: Path) -> None:
    page = Page(write_report(str(run), top=0))
    shift = section(page, "shift")
    assert "The run is brighter than the reference." in shift
    assert shift.index("bright &amp; &lt;new&gt;") < shift.index("calm")
    assert "under 0.001" in shift
    assert all(f"plate-{index} " in shift for index in (0, 29))
    assert "plate-15 " not in shift
    assert ">moved<" in section(page, "sentinels")


@pytest.mark.parametrize(
    ("name", "command"),
    [("shift.json", "chorus shift"), ("flags.parquet", "chorus flag"), ("evaluation.parquet", "chorus evaluate")],
)
def test_what_is_damaged_is_left_out_and_said(run: Path, name: str, command: str) -> None:
    (run / name).write_bytes(b"[{")
    page = Page(write_report(str(run), top=0))
    assert f"{name} is damaged and left out" in page.words
    assert f"run `{command}` again" in page.words


def test_flags_of_other_images_are_left_out_and_said(run: Path) -> None:
    flags = pd.read_parquet(run / "flags.parquet")
    flags.iloc[1:].to_parquet(run / "flags.parquet")
    page = Page(write_report(str(run), top=0))
    assert "flags.parquet is of other images" in page.words
    assert "All images by uncertainty" in page.words


def test_an_ensemble_that_is_gone_or_changed_is_a_note(run: Path) -> None:
    ensemble = json.loads((run / "run.json").read_text())["ensemble"]
    change(run, ensemble=ensemble | {"hash": "1" * 64})
    assert "changed since this run was made" in Page(write_report(str(run), top=0)).words
    change(run, ensemble=ensemble | {"url": str(run / "gone")})
    assert "nothing is known of the ensemble" in Page(write_report(str(run), top=0)).words


def test_an_ensemble_without_a_reference_is_a_plain_note_and_one_that_is_damaged_is_named(run: Path) -> None:
    path = Path(reference_url(json.loads((run / "run.json").read_text())["ensemble"]["url"]))
    path.write_text("{")
    assert f"scores stand alone, and no image is flagged ({path}: " in Page(write_report(str(run), top=0)).words
    path.unlink()
    words = Page(write_report(str(run), top=0)).words
    assert words.count(NO_REFERENCE.replace("`", "")) + words.count(NO_REFERENCE) == 1
    assert str(path) not in words


def test_what_to_cite_is_the_methods_that_were_used_and_what_the_ensemble_asks_for(run: Path) -> None:
    cite = section(Page(write_report(str(run), top=0)), "cite")
    assert "deepflash2" in cite
    assert "Someone et al. (2020)" in cite
    assert 'href="https://doi.org/10.1/2"' in cite
    assert "Cellpose" not in cite
    (run / "objects.json").write_text("{}")
    assert "Cellpose" in section(Page(write_report(str(run), top=0)), "cite")


def test_provenance_names_settings_and_limits(run: Path) -> None:
    change(run, settings={"tile": 512, "level": None, "save": ["probability", "flows"]}, sources=["gs://b/<x>"])
    found = section(Page(write_report(str(run), top=0)), "provenance")
    assert "<dt>Tile</dt><dd>512</dd>" in found
    assert "probability, flows" in found
    assert "none known" in found
    assert "gs://b/&lt;x&gt;" in found
    assert "Level" not in found


def test_an_evaluation_that_was_interrupted_is_left_out_and_said(run: Path) -> None:
    path = run / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"outcome": "running", "metrics": {}, "images": None}))
    page = Page(write_report(str(run), top=0))
    assert "the evaluation was interrupted and is left out; run the same `chorus evaluate` again" in page.source
