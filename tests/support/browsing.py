"""Pages in headless Chromium: a server on a free port, and a person before it."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image

from tests.support.paths import ROOT

CHROMIUM = Path("/usr/bin/chromium")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
AXE = ROOT / "tests" / "serving" / "vendor" / "axe.min.js"


class Served:
    """An ASGI application on a free port; `path` is where its page is."""

    def __init__(self, app: Any, path: str = "/") -> None:
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until = time.monotonic() + 30
        while not self._server.started and time.monotonic() < until:
            time.sleep(0.02)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}{path}"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


class Seat:
    """A reviewer before a page, and all that it asked for and complained about."""

    def __init__(self, browser: Any, url: str, reviewer: str, **options: Any) -> None:
        context = browser.new_context(viewport={"width": 1400, "height": 900}, **options)
        if reviewer:
            context.add_init_script(f"localStorage.setItem('chorus-reviewer', '{reviewer}')")
        context.set_default_timeout(20_000)
        self.page = context.new_page()
        self.url, self.requests, self.complaints = url, [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        self.page.goto(url)

    def names(self) -> list[str]:
        """Images of the cards that are there, in order."""
        cards = self.page.locator(".card[data-index]")
        cards.first.wait_for()
        found = cards.evaluate_all(
            "all => all.map(c => [Number(c.dataset.index), c.querySelector('.name').textContent])"
        )
        return [name for _, name in sorted(found)]

    def check(self) -> None:
        """Nothing was asked of another server, and the browser found nothing wrong."""
        assert [url for url in self.requests if not url.startswith((self.url, "data:", "blob:"))] == []
        assert self.complaints == []


def colours(page: Any) -> np.ndarray:
    """Pixels of the left pane as they are seen, (y, x, 3)."""
    picture = Image.open(io.BytesIO(page.locator(".pane").first.screenshot())).convert("RGB")
    return np.asarray(picture, np.int16)[2:-2, 2:-2]  # its edges may lie between pixels of the screen


def settled(page: Any, test: Any) -> np.ndarray:
    """The pane once `test` of its pixels holds: tiles come when they come."""
    for _ in range(60):
        if test(found := colours(page)):
            return found
        page.wait_for_timeout(100)
    raise AssertionError("the pane never showed it")


def violations(page: Any, where: str) -> list[str]:
    """What axe finds that is serious or critical."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{where}: {one['id']}: {one['nodes'][0]['html'][:200]} {one['nodes'][0]['failureSummary'][:200]}"
        for one in result["violations"]
        if one["impact"] in ("serious", "critical")
    ]
