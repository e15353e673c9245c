"""Packages of BioImage.IO: their test outputs of bioimageio.core and of Chorus, as `chorus models test` does.

python benchmarks/interop/packages.py PACKAGE.zip ... --out packages.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from chorus.pipeline.bioimageio.conformance import check_package
from chorus.pipeline.errors import RefusedError


def main(
    packages: Annotated[list[Path], typer.Argument(help="Packages, zipped.")],
    out: Annotated[Path | None, typer.Option(help="JSON of the figures.")] = None,
) -> None:
    """Print the comparison, one row of each weight format."""
    rows = [row for path in packages for row in tested(path)]
    Console().print_json(data=rows)
    if out is not None:
        out.write_text(json.dumps(rows, indent=1))


def tested(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a package; of one that is refused the sentence alone."""
    try:
        tests = check_package(str(path)).formats
    except RefusedError as error:
        return [{"package": path.stem, "refused": str(error)}]
    return [
        {"package": path.stem, "format": one.format}
        | {
            name: {"status": outcome.status, "reason": outcome.reason, "absolute": outcome.absolute}
            for name, outcome in (("core", one.core), ("chorus", one.chorus))
        }
        for one in tests
    ]


if __name__ == "__main__":
    typer.run(main)
