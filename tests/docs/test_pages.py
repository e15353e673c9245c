"""What the pages name exists: other pages, sections, files, commands and their options."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.support.commands import CHORUS, parse
from tests.support.manifests import DOCS as OPERATORS
from tests.support.manifests import calls_in
from tests.support.pages import PAGES, anchors, links

# tests/infra looks at the others' calls, and at what they must have.
CALLS = calls_in([page for page in PAGES if page not in OPERATORS], "chorus")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_their_anchors_resolve(page: Path) -> None:
    for target, fragment in links(page):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        if fragment:
            assert fragment in anchors(path), f"{target}#{fragment}"


@pytest.mark.parametrize(("page", "line"), CALLS, ids=lambda value: str(value))
def test_commands_and_their_options_exist(page: str, line: str) -> None:
    parse(CHORUS, shlex.split(line)[1:])


def test_commands_are_found_on_pages() -> None:
    assert {("README.md", "predict"), ("objects.md", "objects")} <= {(page, line.split()[1]) for page, line in CALLS}


def test_a_link_into_a_section_that_is_missing_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One: `two`, three\n\n[here](#one-two-three) [gone](#four) ![x](y.png) [web](https://z)\n")
    assert anchors(page) == {"one-two-three"}
    assert links(page) == [("", "one-two-three"), ("", "four"), ("y.png", "")]
