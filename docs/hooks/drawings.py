"""Draw docs/images/rooms.svg from the contracts of pyproject.toml, and docs/images/region.svg.

    python docs/hooks/drawings.py

A test compares the drawings that are kept with what this file makes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
FLOORS = (
    ("chorus", "the face: command line and Python API"),
    ("serving", "online: predict endpoint and review page, on Ray Serve"),
    ("cluster", "where it runs: Ray, plan, stream of regions, ledger"),
    ("pipeline", "what is done: images, members, inference, posterior, objects, trust; never imports Ray"),
)
COLOURS = {"chorus": "#e8eaf6", "serving": "#e3f2fd", "cluster": "#e0f2f1", "pipeline": "#f1f8e9"}
INK, LINE, CHIP = "#263238", "#90a4ae", "#ffffff"
CHIP_WIDTH, CHIP_HEIGHT, GAP, MARGIN, HEAD = 112, 28, 7, 12, 36


@dataclass(frozen=True)
class Box:
    """A labelled step of a drawing: its corner, its size and its lines of text; the first of several is bold."""

    x: int
    y: int
    width: int
    height: int
    lines: tuple[str, ...]
    size: float = 12.5

    @property
    def middle(self) -> int:
        return self.x + self.width // 2

    def svg(self) -> str:
        top = self.y + (self.height - 15 * (len(self.lines) - 1)) / 2 + 4
        parts = [
            f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="5" '
            f'fill="{CHIP}" stroke="{LINE}"/>'
        ]
        for index, line in enumerate(self.lines):
            weight = ' font-weight="600"' if index == 0 and len(self.lines) > 1 else ""
            parts.append(
                f'<text x="{self.middle}" y="{top + 15 * index:g}" text-anchor="middle" '
                f'font-size="{self.size:g}"{weight}>{escape(line)}</text>'
            )
        return "".join(parts)


def room_layers() -> dict[str, list[list[str]]]:
    """Rooms by floor, as import-linter holds them: each layer uses only the layers after it."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers: dict[str, list[list[str]]] = {}
    for contract in contracts:
        if contract["type"] == "layers":
            (container,) = contract["containers"]
            layers[container.removeprefix("chorus.")] = [
                [name.strip(" ()") for name in layer.replace(":", "|").split("|")] for layer in contract["layers"]
            ]
    floors = {name for name, _ in FLOORS}
    layers["chorus"] = [layer for layer in layers["chorus"] if not floors & set(layer)]
    return layers


def rooms_svg() -> str:
    """Draw the floors and their rooms; an import goes down, or to the right."""
    layers = room_layers()
    columns = max(len(rows) for rows in layers.values())
    width = 2 * MARGIN + columns * (CHIP_WIDTH + GAP) - GAP + 2 * MARGIN
    parts, y = [], MARGIN
    for floor, about in FLOORS:
        tallest = max(len(layer) for layer in layers[floor])
        height = HEAD + tallest * (CHIP_HEIGHT + GAP) + GAP
        parts.append(
            f'<rect x="{MARGIN}" y="{y}" width="{width - 2 * MARGIN}" height="{height}" rx="8" '
            f'fill="{COLOURS[floor]}" stroke="{LINE}"/>'
            f'<text x="{2 * MARGIN}" y="{y + 23}" font-size="15"><tspan font-weight="700">{floor}/</tspan>'
            f'<tspan dx="10">{escape(about)}</tspan></text>'
        )
        for column, layer in enumerate(layers[floor]):
            for row, room in enumerate(layer):
                x = 2 * MARGIN + column * (CHIP_WIDTH + GAP)
                parts.append(Box(x, y + HEAD + row * (CHIP_HEIGHT + GAP), CHIP_WIDTH, CHIP_HEIGHT, (room,), 15).svg())
        y += height + GAP
    return document(width, y + MARGIN - GAP, "The floors of Chorus and their rooms", parts)


def arrow(x1: int, y1: int, x2: int, y2: int) -> str:
    """Draw a line with a head at its end."""
    return f'<path d="M{x1} {y1}L{x2} {y2}" stroke="{INK}" fill="none" marker-end="url(#head)"/>'


def region_svg() -> str:
    """Draw the way of one region, from the plan to the report."""
    top, middle, bottom = 16, 126, 256
    plan = Box(72, top, 196, 62, ("plan", "images, settings, members;", "regions not in the ledger"))
    stream = Box(332, top, 196, 62, ("stream", "one descriptor a region,", "about 100 bytes; Ray Data"))
    retry = Box(592, top, 196, 62, ("retry", "the worker died or failed:", "again, limited, elsewhere"))
    read = Box(92, middle + 36, 196, 62, ("read", "window and halo, resampled", "and normalised; own thread"))
    infer = Box(332, middle + 36, 196, 62, ("infer", "tiles x members x flips,", "blended; one device lock"))
    write = Box(572, middle + 36, 196, 62, ("write", "one whole shard of", "each map; own thread"))
    record = Box(572, bottom, 196, 62, ("record", "ledger entry: the only", "sign of completion"))
    finish = Box(332, bottom, 196, 62, ("finish image", "pyramids, objects,", "sums become scores"))
    rank = Box(92, bottom, 196, 62, ("rank, flag, report", "scores.parquet,", "flags.parquet, a page"))
    actor = (
        f'<rect x="72" y="{middle}" width="716" height="112" rx="8" fill="{COLOURS["cluster"]}" stroke="{LINE}"/>'
        f'<text x="90" y="{middle + 22}"><tspan font-weight="700">member actor</tspan>'
        '<tspan dx="10">a process with a device and all members; several regions at once</tspan></text>'
    )
    arrows = [
        arrow(268, top + 31, 328, top + 31),
        arrow(430, top + 62, 430, middle - 4),
        arrow(690, middle, 690, top + 66),
        arrow(592, top + 31, 532, top + 31),
        arrow(288, middle + 67, 328, middle + 67),
        arrow(528, middle + 67, 568, middle + 67),
        arrow(670, middle + 98, 670, bottom - 4),
        arrow(572, bottom + 31, 532, bottom + 31),
        arrow(332, bottom + 31, 292, bottom + 31),
    ]
    boxes: Sequence[Box] = (plan, stream, retry, read, infer, write, record, finish, rank)
    return document(860, bottom + 78, "The way of one region", [actor, *(box.svg() for box in boxes), *arrows])


def document(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """Put parts on a sheet of its own colour: it can be read on a light page and on a dark one."""
    head = (
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker>'
    )
    lines = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="system-ui, sans-serif" font-size="12.5" fill="{INK}" role="img">\n'
        f"<title>{title}</title>\n<defs>{head}</defs>\n"
        f'<rect width="{width}" height="{height}" rx="10" fill="#fafafa"/>\n{lines}\n</svg>\n'
    )


DRAWINGS = {"rooms.svg": rooms_svg, "region.svg": region_svg}

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (IMAGES / name).write_text(draw())
