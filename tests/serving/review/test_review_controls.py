"""What is moved in the page: thresholds of scores, planes of a stack; and decisions of two at once on a bucket."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import expect

from chorus.serving.review.app import review_app
from tests.support.browsing import Seat, Served, settled
from tests.support.buckets import KINDS
from tests.support.object_runs import drawn
from tests.support.reviews import SLIDE, write_object_run, write_review_run


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_review_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def scores(browser: Any, out: Path) -> Iterator[tuple[Seat, pd.Series]]:
    """A seat before the distributions of the run, and the uncertainties of its images."""
    server = Served(review_app(str(out)))
    seat = Seat(browser, f"{server.url}#/scores", "ann")
    seat.url = server.url
    table = pd.read_parquet(out / "scores.parquet").set_index("name")
    yield seat, table["uncertainty"].astype(float)
    seat.check()
    server.stop()


def test_a_threshold_is_moved_by_keys_and_by_hand_and_singles_out_what_pandas_does(
    scores: tuple[Seat, pd.Series],
) -> None:
    seat, uncertainty = scores
    page = seat.page
    plot = page.get_by_role("region", name=re.compile("^Uncertainty")).first
    handle = plot.get_by_role("slider")

    def limit() -> float:
        """Where the handle is, once the page has counted."""
        value = float(handle.get_attribute("aria-valuenow"))
        count = int((uncertainty >= value).sum())
        expect(plot.get_by_role("status")).to_contain_text(f"{count} of {len(uncertainty)} images")
        expect(handle).to_have_attribute("aria-valuetext", re.compile(rf"{count} of {len(uncertainty)} images"))
        return value

    handle.focus()
    page.keyboard.press("Home")
    assert limit() == pytest.approx(uncertainty.min(), rel=1e-4)
    page.keyboard.press("End")
    assert limit() == pytest.approx(uncertainty.max(), rel=1e-4)
    for _ in range(3):
        page.keyboard.press("PageDown")
    page.keyboard.press("ArrowLeft")
    step = (uncertainty.max() - uncertainty.min()) / 200
    assert limit() == pytest.approx(uncertainty.max() - 31 * step, rel=1e-3)

    page.wait_for_load_state("networkidle")  # nothing moves any more
    box, grip = plot.locator("svg").bounding_box(), handle.locator("circle").bounding_box()
    assert box
    assert grip
    page.mouse.move(grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2)
    page.mouse.down()
    for share in (0.7, 0.4, 0.2):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 10, steps=4)
    page.mouse.up()
    wanted = uncertainty.min() + (0.2 * 420 - 8) / 404 * (uncertainty.max() - uncertainty.min())
    assert limit() == pytest.approx(wanted, abs=2 * step)
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"])  # let go of, it stays
    chosen = limit()
    assert chosen == pytest.approx(wanted, abs=2 * step)
    plot.get_by_role("button", name="Look at them").click()
    assert seat.names() == list(uncertainty[uncertainty >= chosen].sort_values(ascending=False).index)


def test_a_handle_is_dragged_by_a_finger(browser: Any, out: Path) -> None:
    server = Served(review_app(str(out)))
    seat = Seat(browser, f"{server.url}#/scores", "ann", has_touch=True)
    plot = seat.page.get_by_role("region", name=re.compile("^Uncertainty")).first
    handle = plot.get_by_role("slider")
    grip, before = handle.locator("circle").bounding_box(), handle.get_attribute("aria-valuenow")
    assert grip
    x, y = grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2
    devtools = seat.page.context.new_cdp_session(seat.page)
    for kind, at in (("touchStart", x), ("touchMove", x - 40), ("touchMove", x - 90), ("touchEnd", None)):
        points = [] if at is None else [{"x": at, "y": y}]
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    expect(handle).not_to_have_attribute("aria-valuenow", before)
    server.stop()


def test_planes_and_times_are_those_that_the_sliders_and_keys_say(browser: Any, tmp_path: Path) -> None:
    shape = (2, 3)
    planes = {"stack": np.stack([[drawn(10 * t + z, 90, 110, 10) for z in range(3)] for t in range(2)])}
    out = write_object_run(tmp_path, planes)
    source = zarr.open_array(tmp_path / "in/stack.ome.zarr/s0", mode="r")
    server = Served(review_app(str(out)))
    seat = Seat(browser, f"{server.url}#/image/stack.ome.zarr", "ann")
    seat.url, page = server.url, seat.page
    seen = settled(page, lambda found: (found.max(axis=2) > 100).mean() > 0.1)
    pane = page.locator(".pane").first
    box = pane.bounding_box()
    assert box

    def shows(t: int, z: int) -> None:
        """The value of the place that was clicked comes to be what is stored of it in this plane."""
        heading = page.get_by_text(re.compile(r"At y \d+, x \d+"))
        heading.wait_for()
        y, x = map(int, re.findall(r"\d+", heading.text_content() or ""))
        value = page.get_by_label("Values where you clicked").locator("dd").first
        expect(value).to_have_text(str(int(source[t, 0, z, y, x])))

    pane.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    shows(0, 0)
    depth, time = page.get_by_role("slider", name="Plane z"), page.get_by_role("slider", name="Time t")
    assert (depth.get_attribute("max"), time.get_attribute("max")) == ("2", "1")
    depth.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("output").first).to_have_text("2/3")
    shows(0, 1)
    time.fill("1")
    page.keyboard.press("Escape")  # out of the slider, to the picture's keys
    shows(1, 1)
    page.keyboard.press("]")
    page.keyboard.press("]")
    shows(1, 2)  # the last one is the last
    page.keyboard.press("{")
    page.keyboard.press("[")
    shows(0, 1)
    settled(page, lambda found: found.shape == seen.shape and (found != seen).any(axis=2).mean() > 0.05)
    asked = {tuple(map(int, found)) for url in seat.requests for found in re.findall(r"/channel-0/\d+/(\d)/(\d)/", url)}
    assert {(0, 0), (0, 1), (1, 1), (1, 2)} <= asked <= set(np.ndindex(*shape))
    seat.check()
    server.stop()


@pytest.mark.parametrize("kind", ["gs", pytest.param("s3", marks=pytest.mark.long)])
def test_two_at_once_on_a_bucket_lose_nothing_and_see_each_other(
    browser: Any, out: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a server of their own: the bucket is all that they share."""
    with KINDS[kind](monkeypatch) as bucket:
        url = bucket.put(out, "out")
        servers = [Served(review_app(url)) for _ in range(2)]
        ann, bob = (Seat(browser, server.url, name) for server, name in zip(servers, ("ann", "bob"), strict=True))
        names = ann.names()
        assert bob.names()[: len(names)] == names
        for name, one, other in zip(names[:4], "AARR", "RAAR", strict=True):
            for seat, letter in ((ann, one), (bob, other)):
                word = {"A": "Accept", "R": "Reject"}[letter]
                seat.page.get_by_role("button", name=f"{word}: {name}").click(no_wait_after=True)
        for seat, other in ((ann, "bob"), (bob, "ann")):
            expect(seat.page.get_by_text(f"you and {other} disagree")).to_have_count(2, timeout=20_000)
        ann.page.wait_for_load_state("networkidle")
        bob.page.wait_for_load_state("networkidle")
        ann.page.keyboard.press("u")
        ann.page.get_by_text(re.compile("^Undone: ")).wait_for()
        written = [json.loads(content) for content in bucket.objects("out/review/decisions").values()]
        said = {(entry["reviewer"], entry["image"], entry["decision"]) for entry in written if "decision" in entry}
        assert len(said) == 8
        for name, one, other in zip(names[:4], "aarr", "raar", strict=True):
            for reviewer, letter in (("ann", one), ("bob", other)):
                assert (reviewer, name, {"a": "accept", "r": "reject"}[letter]) in said
        assert [entry["reviewer"] for entry in written if "undoes" in entry] == ["ann"]
        for seat, server in zip((ann, bob), servers, strict=True):
            seat.check()
            server.stop()
    assert SLIDE in names
