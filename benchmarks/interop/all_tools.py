"""Run all comparisons of this folder one after the other, each in its tool's environment, and keep one table.

    make interop [INTEROP=FOLDER]

`inputs.py` says what is looked for in FOLDER and what is made where it is missing. The table has the largest difference
or the lowest AP over all models and images; the JSON in ``benchmarks/results`` has every figure. A comparison that
fails is a row of the table, and the exit code is 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.interop.inputs import Inputs, gather
from benchmarks.records import keep

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
IMAGES = 4
"""Grey images that are compared at most."""
Figures = list[dict[str, Any]]
console = Console(width=160)


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes
    ----------
    inputs : which models and images
    compared : what of them
    figure : largest difference or lowest AP, as `compared` says
    """

    inputs: str
    compared: str
    figure: str


@dataclass(frozen=True)
class Tool:
    """A tool that Chorus is compared with.

    Attributes
    ----------
    distribution : whose version counts
    environment : name of its environment; that of Chorus where it is empty
    commands : scripts with their arguments, given its Python and the inputs; each gets ``--out``
    inside : whether the script itself runs in its environment, or starts a process there
    lines : of the table, from all figures
    """

    distribution: str
    environment: str
    commands: Callable[[str, Inputs], list[list[object]]]
    inside: bool
    lines: Callable[[Figures], list[Line]]


def main(
    folder: Annotated[Path | None, typer.Argument(help="Models and images of your own; see inputs.py.")] = None,
    environments: Annotated[Path, typer.Option(help="Folder of the tools' environments.")] = Path(".interop"),
    tools: Annotated[str, typer.Option(help="Comma-separated.")] = "stardist,nnunet,cellpose3,torchem,bioimageio",
    results: Annotated[Path, typer.Option(help="Folder for the JSON.")] = Path("benchmarks/results"),
) -> None:
    """Compare, print the table and keep it."""
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as scratch:
        inputs = gather(folder, Path(scratch))
        for name in tools.split(","):
            tool = TOOLS[name]
            python = str(environments / tool.environment / "bin" / "python") if tool.environment else sys.executable
            console.print(f"{name} ...", highlight=False)
            try:
                figures = [row for one in tool.commands(python, inputs) for row in _run(tool, python, one, scratch)]
                lines = tool.lines(figures)
            except subprocess.CalledProcessError as error:
                failed, figures = True, []
                lines = [Line("", "failed", f"exit code {error.returncode}")]
            row = {"tool": name, "distribution": tool.distribution, "version": _version(tool, python)}
            rows.append(row | {"table": [asdict(line) for line in lines], "figures": figures})
    console.print(_table(rows))
    keep(results, "-interop", rows)
    if failed:
        raise typer.Exit(1)


def _run(tool: Tool, python: str, command: list[object], scratch: str) -> Figures:
    script, *arguments = command
    out = Path(scratch) / "figures.json"
    out.unlink(missing_ok=True)
    surroundings = os.environ | {"PYTHONPATH": str(ROOT), "QT_QPA_PLATFORM": "offscreen"}
    started_by = python if tool.inside else sys.executable
    # What the scripts print is in the JSON; what they report goes through.
    subprocess.run(
        [started_by, str(HERE / str(script)), *map(str, arguments), "--out", str(out)],
        check=True,
        env=surroundings,
        stdout=subprocess.DEVNULL,
    )
    figures: Figures = json.loads(out.read_text())
    return figures


def _version(tool: Tool, python: str) -> str:
    code = f"from importlib.metadata import version; print(version({tool.distribution!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _table(rows: Figures) -> Table:
    table = Table("tool", "version", "inputs", "compared", "figure")
    for row in rows:
        for index, line in enumerate(row["table"]):
            first = [row["tool"], row["version"]] if index == 0 else ["", ""]
            table.add_row(*first, *line.values())
        table.add_section()
    return table


def _stardist(figures: Figures) -> list[Line]:
    lines = []
    for trained in (False, True):
        chosen = [row for row in figures if row["trained"] == trained]
        kind = "trained" if trained else "random weights"
        lines += _lines(kind, chosen, "probabilities, rays as shares of the longest", _stardist_outputs)
        for extended in (False, True):
            cut = [row for row in chosen if row["extended"] == extended and "ap90" in row]
            where = f"{kind}, images that StarDist {'extends' if extended else 'leaves'}"
            lines += _lines(where, cut, "objects from its maps: AP50, AP90", lambda all: _least(all, "ap50", "ap90"))
            runs = [row for row in cut if trained]
            lines += _lines(where, runs, "whole run: AP50, AP90", lambda all: _least(all, "run_ap50", "run_ap90"))
    return lines


def _stardist_outputs(rows: Figures) -> str:
    return f"{_most(rows, 'probabilities')}, {max(row['rays'] / row['longest_ray'] for row in rows):.1e}"


def _nnunet(figures: Figures) -> list[Line]:
    prepared = [row for row in figures if "preparation" in row]
    exact = [row for row in figures if "both in float32: difference" in row]
    return [
        *_lines("", prepared, "normalised", lambda all: _most(all, "preparation")),
        *_lines("", exact, "probabilities, sums in float32", lambda all: _most(all, "both in float32: difference")),
        *_lines("", figures, "probabilities, its sums in float16", lambda all: _most(all, "float32: difference")),
        *_lines("", figures, "voxels of other labels, margin 0.005", lambda all: _most(all, "float32: labels")),
        *_lines("", figures, "whole run: same labels, lowest share", lambda all: _least(all, "same labels")),
    ]


def _cellpose(figures: Figures) -> list[Line]:
    return [
        *_lines("", figures, "normalised, outputs, style", lambda all: _most(all, "pixels", "outputs", "style")),
        *_lines("", figures, "diameter of the size model, relative", lambda all: _most(all, "style_diameter")),
        *_lines("", figures, "objects from its maps: AP50, AP90", lambda all: _least(all, "ap50", "ap90")),
        *_lines("", figures, "whole run: AP50", lambda all: _least(all, "run_ap50")),
    ]


def _watersheds(figures: Figures) -> list[Line]:
    lines = []
    for method in dict.fromkeys(row["method"] for row in figures):
        rows = [row for row in figures if row["method"] == method]
        for name, compared in (("against_tool", "whole volume: AP50, AP90"), ("blocks", "blocks: AP50, AP90")):
            least = ", ".join(f"{min(row[name][place] for row in rows):.3f}" for place in (0, 1))
            lines.append(Line(method, compared + (" against its whole" if name == "blocks" else ""), least))
    return lines


def _packages(figures: Figures) -> list[Line]:
    lines = [Line(row["package"], "refused", row["refused"]) for row in figures if "refused" in row]
    for row in figures:
        for name in ("core", "chorus") if "format" in row else ():
            outcome = row[name]
            figure = outcome["reason"] if outcome["absolute"] is None else f"{outcome['absolute']:.1e}"
            by = "bioimageio.core" if name == "core" else "Chorus"
            lines.append(Line(f"{row['package']} ({row['format']})", f"{by}: {outcome['status']}", figure))
    return lines


def _lines(inputs: str, rows: Figures, compared: str, figure: Callable[[Figures], str]) -> list[Line]:
    return [Line(inputs, compared, figure(rows))] if rows else []


def _most(rows: Figures, *names: str) -> str:
    return _joined((max(row[name] for row in rows) for name in names), ".1e")


def _least(rows: Figures, *names: str) -> str:
    return _joined((min(row[name] for row in rows) for name in names), ".3f")


def _joined(values: Iterable[float], digits: str) -> str:
    return ", ".join(f"{value:{digits}}" for value in values)


def _of_stardist(python: str, inputs: Inputs) -> list[list[object]]:
    chosen = [] if "images" in inputs.made else [part for path in inputs.images[:IMAGES] for part in ("--image", path)]
    return [["stars.py", "--python", python, *chosen, *inputs.stardist]]


def _of_nnunet(python: str, inputs: Inputs) -> list[list[object]]:
    return [["nnunet.py", folder, *images] for folder, images in inputs.nnunet]


def _of_cellpose(python: str, inputs: Inputs) -> list[list[object]]:
    images = inputs.images[:IMAGES]
    return [["cellpose3.py", "--python", python, weights, *images] for weights in inputs.cellpose]


def _of_watersheds(python: str, inputs: Inputs) -> list[list[object]]:
    return [["watersheds.py", *inputs.labels]]


def _of_packages(python: str, inputs: Inputs) -> list[list[object]]:
    return [["packages.py", *inputs.packages]]


TOOLS = {
    "stardist": Tool("stardist", "stardist", _of_stardist, False, _stardist),
    "nnunet": Tool("nnunetv2", "nnunet", _of_nnunet, True, _nnunet),
    "cellpose3": Tool("cellpose", "cellpose3", _of_cellpose, False, _cellpose),
    "torchem": Tool("torch_em", "torchem", _of_watersheds, True, _watersheds),
    "bioimageio": Tool("bioimageio.core", "", _of_packages, False, _packages),
}


if __name__ == "__main__":
    typer.run(main)
