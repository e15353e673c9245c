"""Hooks of mkdocs: pages made of files beside docs/, of the modules and of the notebooks, and links out of docs/.

`mkdocs.yml` names this file. Nothing of Chorus is imported: the site is built without torch and Ray.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REPOSITORY_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Files of the repository that are pages of the site: path from the root, path in the site."""
FLOORS = ("pipeline", "cluster", "serving")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+:)([^)#\s]*)(#[^)\s]*)?\)")


@dataclass(frozen=True)
class Room:
    """A package of the API reference, or the modules that stand beside the packages of a floor."""

    name: str
    modules: tuple[str, ...]

    @property
    def title(self) -> str:
        return self.name.removeprefix("chorus.")

    @property
    def page(self) -> str:
        return f"api/{self.title.replace('.', '/')}.md"

    def markdown(self) -> str:
        """The page: the room's docstring, then every module's public names."""
        lines = [f"# {self.name}", "", f"::: {self.name}"]
        lines += ["    options: {members: false, show_root_heading: false, show_root_toc_entry: false}", ""]
        for module in self.modules:
            lines += [f"::: {module}", "    options: {heading_level: 2}", ""]
        return "\n".join(lines)


@dataclass(frozen=True)
class Notebook:
    """A notebook as a page, with the pictures that its cells have printed."""

    stem: str
    markdown: str
    pictures: dict[str, bytes] = field(default_factory=dict)

    @property
    def page(self) -> str:
        return f"notebooks/{self.stem}.md"

    @property
    def title(self) -> str:
        heading = re.search(r"^# (.+)$", self.markdown, re.MULTILINE)
        return heading[1] if heading else self.stem


def rooms(floor: str) -> Iterator[Room]:
    """The floor itself with the modules that stand in no room, then its rooms by name."""
    yield Room(f"chorus.{floor}", tuple(_modules(ROOT / floor, f"chorus.{floor}")))
    for folder in sorted(path.parent for path in (ROOT / floor).glob("*/__init__.py")):
        name = f"chorus.{floor}.{folder.name}"
        packages = sorted(path.parent for path in folder.glob("*/__init__.py"))
        inner = [module for package in packages for module in _modules(package, f"{name}.{package.name}")]
        yield Room(name, (*_modules(folder, name), *inner))


def _modules(folder: Path, package: str) -> Iterator[str]:
    """Public modules of a folder, by name."""
    for path in sorted(folder.glob("*.py")):
        if not path.stem.startswith("_"):
            yield f"{package}.{path.stem}"


def notebooks() -> list[Notebook]:
    """The notebooks of docs/notebooks with the outputs that are stored in them; none where the folder is missing."""
    paths = sorted((DOCS / "notebooks").glob("*.ipynb"))
    if not paths:
        return []
    from nbconvert import MarkdownExporter

    exporter = MarkdownExporter()
    found = []
    for path in paths:
        markdown, resources = exporter.from_filename(
            str(path), resources={"output_files_dir": f"{path.stem}_files", "unique_key": path.stem}
        )
        found.append(Notebook(path.stem, markdown, dict(resources.get("outputs", {}))))
    return found


def title(path: Path) -> str:
    """The heading of a page up to its colon, in place of the name of the file; of other files the name."""
    heading = re.match(r"# ([^:\n]+)", path.read_text()) if path.suffix == ".md" else None
    return heading[1] if heading else f"`{path.name}`"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the API reference and the notebooks to the navigation, before the last two sections."""
    api: list[Any] = [{"chorus": "api/chorus.md"}]
    api += [
        {f"chorus.{floor}": [{room.title.rpartition(".")[2]: room.page} for room in rooms(floor)]} for floor in FLOORS
    ]
    assert config.nav is not None
    position = next(index for index, entry in enumerate(config.nav) if "Measurements" in entry)
    config.nav.insert(position, {"API reference": api})
    shown = notebooks()
    if shown:
        config.nav.insert(position, {"Notebooks": [{notebook.title: notebook.page} for notebook in shown]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of docs/."""
    for source, page in REPOSITORY_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    face = "# chorus\n\n::: chorus\n    options: {show_root_heading: false, show_root_toc_entry: false}\n"
    files.append(File.generated(config, "api/chorus.md", content=face))
    for floor in FLOORS:
        for room in rooms(floor):
            files.append(File.generated(config, room.page, content=room.markdown()))
    for notebook in notebooks():
        files.append(File.generated(config, notebook.page, content=notebook.markdown))
        for name, content in notebook.pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at where their targets are in the site; what is in the repository alone is named or linked there."""
    shown = {target: source for source, target in REPOSITORY_PAGES.items()}
    source = shown.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def relink(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if not target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        in_site = REPOSITORY_PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if in_site:
            if text.strip("`") in (target, path):
                text = title(ROOT / path)
            return f"[{text}]({posixpath.relpath(in_site, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/HEAD/{path}{anchor})"
        return text if text.strip("`") == path else f"{text} (`{path}`)"

    parts = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _LINK.sub(relink, part) for part in parts)
