"""The site's configuration agrees with the pages that there are; `make docs` builds it, with tools of its own."""

from __future__ import annotations

import ast
import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.support.pages import DOCS
from tests.support.paths import ROOT

HOOKS = DOCS / "hooks"


class Loader(yaml.SafeLoader):
    """Takes ``!ENV [NAME, default]`` for its default."""


Loader.add_constructor("!ENV", lambda loader, node: loader.construct_sequence(node)[-1])
CONFIGURATION: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)


def hook(name: str) -> ModuleType:
    """A file of docs/hooks as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_hooks_{name}", HOOKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def navigated(entry: Any) -> set[str]:
    """Pages below an entry of the navigation."""
    if isinstance(entry, str):
        return {entry}
    inner = entry.values() if isinstance(entry, dict) else entry
    return set().union(*(navigated(each) for each in inner))


def repository_pages() -> dict[str, str]:
    """Files beside docs/ that are pages of the site, as docs/hooks/pages.py names them."""
    for statement in ast.parse((HOOKS / "pages.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "REPOSITORY_PAGES":
            return ast.literal_eval(statement.value)
    raise AssertionError("REPOSITORY_PAGES is not in docs/hooks/pages.py")


def test_every_page_is_in_the_navigation_and_nothing_else() -> None:
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - {"javascripts/VENDOR.md"}
    assert navigated(CONFIGURATION["nav"]) == pages | set(repository_pages().values())


def test_pages_made_of_files_of_the_repository_have_their_files() -> None:
    for source, page in repository_pages().items():
        assert (ROOT / source).exists()
        assert not (DOCS / page).exists()


def test_the_site_fetches_nothing_from_other_hosts() -> None:
    assert CONFIGURATION["theme"]["font"] is False
    own = [*CONFIGURATION["extra_css"], *CONFIGURATION["extra"]["polyfills"]]
    assert all((DOCS / path).exists() for path in own)
    assert "```mermaid" not in "".join(path.read_text() for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("name", ["rooms.svg", "region.svg"])
def test_drawings_are_those_of_their_program(name: str) -> None:
    drawn = hook("drawings").DRAWINGS[name]()
    assert (DOCS / "images" / name).read_text() == drawn, "run: python docs/hooks/drawings.py"


def test_every_room_is_drawn() -> None:
    text = (DOCS / "images" / "rooms.svg").read_text()
    for floor in ("cluster", "pipeline", "serving"):
        for room in (ROOT / floor).glob("*/__init__.py"):
            assert f">{room.parent.name}</text>" in text


def test_descriptions_after_a_colon_stand_below_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "griffe", SimpleNamespace(Extension=object, Module=object, Object=object))  # type: ignore[arg-type]
    described = hook("docstrings").described
    docstring = (
        "Do it::\n\n::\n\nParameters\n----------\nurl : of its weights\ntile : edge of a tile\n    in pixels\n"
        "image : (y, x) float32\n    The image.\n\nReturns\n-------\nint : that stays\n"
    )
    assert described(docstring) == (
        "Do it:\n\n\n\nParameters\n----------\nurl\n    of its weights\ntile\n    edge of a tile\n    in pixels\n"
        "image : (y, x) float32\n    The image.\n\nReturns\n-------\nint : that stays\n"
    )
