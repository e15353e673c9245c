"""The report of many images: what lies beside the page, in which order, how large, and that none of it is markup."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from chorus.pipeline.report.page import write_report
from tests.support.reports import Page, part, write_tables

IMAGES = 5_000
EVIL = "</script><script>alert(1)</script>\u2028'\"&.ome.zarr"


def table(images: int, names: list[str] | None = None) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    status = np.where(rng.random(images) < 0.02, "failed", np.where(rng.random(images) < 0.03, "empty", "done"))
    found = pd.DataFrame({"name": names or [f"image-{index:05d}.ome.zarr" for index in range(images)]})
    found["image"], found["source"] = "", "/nowhere/" + found["name"]
    found["status"], found["message"] = status, np.where(status == "failed", "a chunk cannot be decoded", "")
    for name in ("uncertainty", "epistemic", "aleatoric", "pairwise_dice", "area_fraction:nucleus"):
        found[name] = np.where(status == "done", rng.random(images).round(3), np.nan)
    return found


def write_run(out: Path, scores: pd.DataFrame) -> None:
    write_tables(out, [])
    scores.to_parquet(out / "scores.parquet")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of 5,000 images of plates, of which 1 in 3 has a thumbnail."""
    out = tmp_path_factory.mktemp("large")
    names = [f"p{i // 768}.ome.zarr/{chr(65 + i % 768 // 48)}/{i % 48 // 2 + 1:02d}/{i % 2}" for i in range(IMAGES - 1)]
    scores = table(IMAGES, [*names, EVIL])
    scores.loc[scores["name"] == EVIL, ["status", "message"]] = ["failed", "<img src=x onerror=alert(1)>"]
    write_run(out, scores)
    for name in names[::3]:
        file = out / "report" / "thumbnails" / f"{name}.webp"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    write_report(str(out), top=0)
    return out


def listed(out: Path) -> list[list[Any]]:
    return [row for chunk in range(IMAGES // 1000) for row in part(out, f"rows-{chunk}")]


def test_the_page_stays_small_and_all_images_are_beside_it_in_order(large: Path) -> None:
    assert (large / "report" / "index.html").stat().st_size < 150_000
    assert sum(file.stat().st_size for file in (large / "report" / "data").iterdir()) < 350 * IMAGES
    scores = pd.read_parquet(large / "scores.parquet")
    done = scores[scores["status"] == "done"].sort_values(["uncertainty", "name"], ascending=[False, True])
    rows = listed(large)
    assert len(rows) == IMAGES
    assert [row[0] for row in rows[: len(done)]] == done["name"].tolist()
    assert [row[1] for row in rows] == [*range(1, len(done) + 1), *[0] * (IMAGES - len(done))]
    assert {row[0] for row in rows} == set(scores["name"])
    uncertainty = [each["label"] for each in Page(str(large / "report/index.html")).data["quantities"]].index(
        "Uncertainty U"
    )
    assert [row[3][uncertainty] for row in rows[: len(done)]] == done["uncertainty"].tolist()


def test_orders_are_those_of_the_scores_with_missing_ones_last(large: Path) -> None:
    rows = listed(large)
    for index, quantity in enumerate(Page(str(large / "report/index.html")).data["quantities"]):
        order = np.frombuffer(base64.b64decode(part(large, f"order-{index}")), "<u4")
        assert sorted(order.tolist()) == list(range(IMAGES))
        values = pd.Series([rows[place][3][index] for place in order], dtype=float)
        known = values.dropna()
        assert values.notna().iloc[: len(known)].all()
        falling = quantity["label"] != "Pairwise Dice"
        assert known.is_monotonic_decreasing if falling else known.is_monotonic_increasing


def test_marks_say_the_status_of_each_image(large: Path) -> None:
    marks = np.frombuffer(base64.b64decode(part(large, "marks")), "<u2")
    names = Page(str(large / "report/index.html")).data["marks"]
    status = pd.read_parquet(large / "scores.parquet").set_index("name")["status"]
    wanted = [1 << names.index(status[row[0]]) for row in listed(large)]
    assert marks.tolist() == wanted


def test_rows_know_whether_there_is_a_thumbnail(large: Path) -> None:
    names = pd.read_parquet(large / "scores.parquet")["name"]
    wanted = set(names.iloc[: IMAGES - 1 : 3])
    assert {row[0] for row in listed(large) if row[2]} == wanted


def test_wells_hold_the_median_of_their_fields_on_the_whole_plate(large: Path) -> None:
    data = Page(str(large / "report/index.html")).data
    assert data["plates"] == [f"p{index}" for index in range(7)]
    scores = pd.read_parquet(large / "scores.parquet")
    plate = part(large, "plate-1")
    assert (len(plate["rows"]), len(plate["columns"])) == (16, 24)
    for (row, column, images), value in zip(plate["wells"], plate["values"][0], strict=True):
        well = f"p1.ome.zarr/{plate['rows'][row]}/{plate['columns'][column]}/"
        fields = scores[scores["name"].str.startswith(well)]
        assert images == len(fields)
        assert value == pytest.approx(fields["uncertainty"].median(), abs=1e-4, nan_ok=True) or value is None


def test_what_users_gave_cannot_become_markup_in_the_page_or_beside_it(large: Path) -> None:
    for file in (large / "report").rglob("*.*"):
        if file.suffix in (".js", ".html"):
            text = file.read_text()
            assert "alert(1)</script>" not in text
            assert "<img src=x" not in text
    assert any(row[0] == EVIL and row[5].startswith("<img") for row in listed(large))


def test_files_of_an_earlier_report_go_and_few_images_need_none(tmp_path: Path) -> None:
    write_run(tmp_path, table(1500))
    write_report(str(tmp_path), top=0)
    data = tmp_path / "report" / "data"
    assert (data / "rows-1.js").exists()
    write_run(tmp_path, table(700))
    write_report(str(tmp_path), top=0)
    assert not (data / "rows-1.js").exists()
    write_run(tmp_path, table(60))
    page = Page(write_report(str(tmp_path), top=0))
    assert not list(data.glob("*")) if data.exists() else True
    assert len(page.data["inline"]["rows-0"]) == 60


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium to look with")
def test_a_browser_shows_the_list_and_a_plate(large: Path, tmp_path: Path) -> None:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", "--dump-dom"]
    url = (large / "report" / "index.html").as_uri()
    shown = subprocess.run(["chromium", *flags, url], capture_output=True, text=True, timeout=120, check=True).stdout
    assert "1 to 30 of 5,000 images" in shown
    assert shown.count('class="rank"') == 30
    assert json.dumps(listed(large)[0][0])[1:-1] in shown
    assert "on p0, median of each well" in shown
