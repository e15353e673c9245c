"""The page behind the server: from the form to the exports, in headless Chromium."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import expect

from chorus.serving.contract.metrics import ApplicationMetrics
from chorus.serving.contract.settings import parse_settings
from chorus.serving.review.run import ReviewedRun
from chorus.serving.web.api import create_app
from chorus.serving.web.tokens import add_token
from tests.support.browsing import Seat, Served, settled, violations
from tests.support.object_runs import drawn
from tests.support.reviews import write_object_run
from tests.support.servers import Nothing

NAMES = ["a", "b", "c"]
WORST = "c.ome.zarr"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Served, Path, str]]:
    """A server with tokens, as `chorus serve --results --token-file`; its results, and the token of ann."""
    out = write_object_run(tmp_path, {name: drawn(seed, 120, 140, 12) for seed, name in enumerate(NAMES)})
    file = str(tmp_path / "tokens.json")
    token = add_token(file, "ann", 600)
    settings = parse_settings({"ensembles": {"none": "nowhere/"}, "results": str(out), "token_file": file})
    server = Served(create_app(settings, Nothing(), ApplicationMetrics()), "/review/")
    yield server, out, token
    server.stop()


def test_from_signing_in_to_the_exports(browser: Any, served: tuple[Served, Path, str]) -> None:
    server, out, token = served
    seat = Seat(browser, f"{server.url}#/?sort=name", "")
    seat.url, page = server.url, seat.page
    assert page.url == f"{server.url}sign-in#/?sort=name"
    page.get_by_label("Token").fill("guess")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("alert").get_by_text("does not know that token").wait_for()
    assert violations(page, "signing in") == []
    page.get_by_label("Token").fill(token)
    page.keyboard.press("Enter")
    # Where one wanted to go, also after a wrong token.
    assert seat.names() == [f"{name}.ome.zarr" for name in NAMES]
    assert page.url == f"{server.url}#/?sort=name"
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/review")
    assert page.evaluate("document.cookie") == ""
    refused = [said for said in seat.complaints if "401" not in said]
    assert refused == []
    seat.complaints.clear()

    # The page knows who it is, and does not ask.
    page.get_by_role("combobox", name="Sort by").select_option("rank")
    expect(page.locator('.card[data-index="0"] .name')).to_have_text(WORST)
    page.get_by_role("link", name=WORST).click()
    settled(page, lambda seen: (seen.max(axis=2) > 100).mean() > 0.015)
    page.keyboard.press("a")
    page.get_by_role("heading", name="b.ome.zarr").wait_for()
    page.get_by_label("Decision", exact=True).wait_for()  # keys decide on what is seen
    page.keyboard.press("r")
    page.get_by_text("Rejected: b.ome.zarr").wait_for()
    page.keyboard.press("Escape")
    page.get_by_text("Accepted by you").wait_for()
    said = ReviewedRun(str(out)).log
    said.refresh()
    assert {name: state.verdicts[0].reviewer for name, state in said.states().items()} == {
        WORST: "ann",
        "b.ome.zarr": "ann",
    }

    page.get_by_role("button", name="Export").click()
    with page.expect_download() as table:
        page.get_by_role("link", name="Decisions as CSV").click()
    assert f"{WORST},accept,ann," in Path(table.value.path()).read_text()
    for word, decision, name in (("GeoJSON", "accept", "c.geojson"), ("ROI sets", "reject", "b.zip")):
        page.get_by_label("Of images that are").select_option(decision)
        with page.expect_download() as download:
            page.get_by_role("link", name=word).click()
        with zipfile.ZipFile(download.value.path()) as archive:
            assert archive.namelist() == [name, "images.csv"]
            if name.endswith("geojson"):
                assert len(json.loads(archive.read(name))["features"]) > 3
    assert violations(page, "export") == []
    page.get_by_label("Of images that are").select_option("correct-later")
    expect(page.get_by_role("button", name="GeoJSON")).to_be_disabled()
    page.get_by_role("button", name="Close").click()

    page.get_by_role("button", name="ann", exact=True).click()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Token").wait_for()
    assert page.context.cookies() == []
    page.goto(server.url)
    page.get_by_label("Token").wait_for()
    seat.check()


def test_another_site_gets_nothing_decided_by_who_is_signed_in(browser: Any, served: tuple[Served, Path, str]) -> None:
    """A page on another origin, open in the same browser, that posts a form and fetches."""
    server, out, token = served
    seat = Seat(browser, server.url, "")
    seat.page.get_by_label("Token").fill(token)
    seat.page.keyboard.press("Enter")
    seat.names()
    elsewhere = Served(_hostile(server.url), "/")
    page = seat.page.context.new_page()
    page.goto(elsewhere.url.replace("127.0.0.1", "localhost"))
    page.get_by_text("fetched: refused").wait_for()
    page.get_by_role("button").click()
    page.get_by_text("only the page of this server").or_(page.get_by_text("other sites")).first.wait_for()
    elsewhere.stop()
    log = ReviewedRun(str(out)).log
    log.refresh()
    assert log.states() == {}


def _hostile(target: str) -> Any:
    content = json.dumps({"image": WORST, "decision": "accept", "reviewer": "mallory"})
    page = f"""<p id="said"></p><form method="post" enctype="text/plain" action="{target}api/decisions">
    <input name='{content[:-1]}, "note": "' value='"}}'><button>Win</button></form>
    <script>fetch("{target}api/decisions", {{method: "POST", credentials: "include", body: '{content}'}})
      .then(() => "answered", () => "refused").then(word => {{ said.textContent = "fetched: " + word; }});</script>"""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = [(b"content-type", b"text/html")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": page.encode()})

    return app
