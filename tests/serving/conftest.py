"""A browser for the tests of pages, which skip where there is none; and the command line of the face's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.browsing import CHROMIUM, OPTIONS
from tests.support.running import Chorus, command_line


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=OPTIONS)
        yield found
        found.close()


@pytest.fixture
def chorus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chorus:
    """``chorus`` with arguments, see `command_line`."""
    return command_line(monkeypatch, capsys)
