"""The whole review in headless Chromium: by keys and pointer, by two reviewers at once, in both themes and widths."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chorus.serving.review.app import review_app
from tests.support.browsing import Seat, Served, settled, violations
from tests.support.reviews import EVIL, FIELDS, SLIDE, write_flags, write_many, write_review_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ORDER = [SLIDE, *reversed(FIELDS), EVIL]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = write_review_run(tmp_path_factory.mktemp("made"))
    flagged = {SLIDE: (["poor", "uncertain"], ["uncertainty 0.200, not below U_min 0.100"])}
    write_flags(out, ORDER, flagged)
    return out


@pytest.fixture
def served(made: Path, tmp_path: Path) -> Iterator[Served]:
    server = Served(review_app(str(shutil.copytree(made, tmp_path / "out"))))
    yield server
    server.stop()


def test_the_whole_journey_of_a_reviewer(browser: Any, served: Served) -> None:
    seat = Seat(browser, served.url, "")
    page = seat.page
    assert seat.names() == ORDER

    page.get_by_label("Search").fill("/A/")
    page.get_by_text("4 images of 10").wait_for()
    page.get_by_role("button", name="Show all").click()
    page.get_by_role("combobox", name="Sort by").select_option("name")
    page.get_by_text(re.compile("^10 images$")).wait_for()
    first = page.locator('.card[data-index="0"] .name')
    sync_api.expect(first).to_have_text(EVIL)
    page.get_by_role("combobox", name="Sort by").select_option("rank")
    sync_api.expect(first).to_have_text(SLIDE)

    # Open the first, see its pixels, layers on and off.
    page.get_by_role("link", name=SLIDE).click()
    shown = settled(page, lambda seen: (seen.max(axis=2) > 100).mean() > 0.015)
    page.get_by_label("actin", exact=False).first.wait_for()
    page.keyboard.press("1")
    page.keyboard.press("2")
    page.keyboard.press("3")
    settled(page, lambda seen: seen.max() < 10)
    page.get_by_role("checkbox", name="Members' disagreement").check()
    page.get_by_role("spinbutton", name="Members' disagreement (epistemic): To, value").fill("0.07")
    page.keyboard.press("Enter")
    settled(page, lambda seen: (seen[..., 0] > seen[..., 2] + 30).mean() > 0.01)
    page.get_by_role("button", name="Side by side").click()
    assert page.locator(".pane").count() == 2
    page.locator(".pane").first.click(position={"x": 200, "y": 300})
    page.get_by_text(re.compile(r"At y \d+, x \d+")).wait_for()
    assert shown.shape[1] > 900

    # Decide: the page asks who it is, once; then on to the next, and back by undo.
    page.keyboard.press("n")
    page.keyboard.type("two nuclei in one")
    page.keyboard.press("Escape")
    page.keyboard.press("c")
    page.get_by_label("Name").fill("ann")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("heading", name=ORDER[1]).wait_for()
    page.get_by_role("button", name="Accept").click()
    page.get_by_role("heading", name=ORDER[2]).wait_for()
    page.keyboard.press("u")
    page.get_by_text(f"Undone: {ORDER[1]}").wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("two nuclei in one").wait_for()
    page.get_by_role("combobox", name="Decision").select_option("correct-later")
    page.get_by_text("1 image of 10").wait_for()
    assert seat.names() == [SLIDE]

    page.get_by_role("button", name="Export").click()
    page.get_by_text("--decided correct-later --out to-correct/").wait_for()
    with page.expect_download() as download:
        page.get_by_role("link", name="Decisions as CSV").click()
    assert f"{SLIDE},correct-later,ann," in Path(download.value.path()).read_text()
    page.get_by_role("button", name="Close").click()
    seat.check()


def test_two_reviewers_at_once_see_each_other_and_where_they_disagree(browser: Any, served: Served) -> None:
    ann, bob = (Seat(browser, served.url, name) for name in ("ann", "bob"))
    ann.names()
    bob.names()
    ann.page.get_by_role("button", name=f"Accept: {SLIDE}").click()
    ann.page.get_by_text(f"Accepted: {SLIDE}").wait_for()
    bob.page.get_by_text("by ann").wait_for(timeout=20_000)
    bob.page.get_by_role("button", name=f"Reject: {SLIDE}").click()
    bob.page.get_by_text("you and ann disagree").first.wait_for()
    ann.page.get_by_text("you and bob disagree").wait_for(timeout=20_000)
    bob.page.keyboard.press("u")
    ann.page.get_by_text("Accepted by you").wait_for(timeout=20_000)
    for seat in (ann, bob):
        seat.check()


def test_names_and_messages_are_never_markup(browser: Any, served: Served) -> None:
    seat = Seat(browser, f"{served.url}#/?search=img", "ann")
    assert seat.names() == [EVIL]
    assert seat.page.locator("img[onerror]").count() == 0
    seat.page.locator(".card a").first.click()
    seat.page.get_by_role("alert").wait_for()
    assert seat.page.locator("img[onerror]").count() == 0
    assert [url for url in seat.requests if url.endswith("/x")] == []


VIEWS = ["#/", f"#/image/{SLIDE}", "#/scores", "#/plates"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_any_view_at_either_width(browser: Any, served: Served, theme: str) -> None:
    seat = Seat(browser, served.url, "ann", color_scheme=theme)
    page, found = seat.page, []
    seat.names()
    page.get_by_role("button", name=f"Accept: {SLIDE}").click()
    for width in (1400, 400):
        page.set_viewport_size({"width": width, "height": 900})
        for view in VIEWS:
            page.evaluate("to => { location.hash = to; }", view)
            page.wait_for_timeout(400)
            page.wait_for_load_state("networkidle")
            found += violations(page, f"{view} {width}")
            over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert over <= 0, f"{view} is wider than {width} pixels"
        page.keyboard.press("?")
        found += violations(page, f"help {width}")
        page.keyboard.press("Escape")
    assert found == []
    seat.check()


@pytest.mark.long
def test_of_100_000_images_the_first_is_there_at_once_and_any_other_soon(browser: Any, tmp_path: Path) -> None:
    scores = write_many(tmp_path, 100_000, 200)
    server = Served(review_app(str(tmp_path)))
    seat = Seat(browser, server.url, "ann")
    page = seat.page
    page.locator(".card img").first.wait_for()
    page.wait_for_function("() => document.querySelector('.card img').complete")
    times = page.evaluate(
        "({paint: performance.getEntriesByName('first-contentful-paint')[0].startTime, image: performance.now()})"
    )
    assert page.locator(".card").count() < 40
    started = time.monotonic()
    page.keyboard.press("End")
    last = scores.sort_values("name")["name"].iloc[-1]
    page.locator('.card[data-index="99999"] .name').wait_for()
    jump = time.monotonic() - started
    started = time.monotonic()
    page.get_by_label("Search").fill(last)
    page.get_by_text("1 image of 100,000").wait_for()
    search = time.monotonic() - started
    server.stop()
    print(
        f"first paint {times['paint']:.0f} ms, image {times['image']:.0f} ms, end {jump:.2f} s, search {search:.2f} s"
    )
    assert times["paint"] < 3000
    assert times["image"] < 6000
    assert max(jump, search) < 5
    seat.check()
