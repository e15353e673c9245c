"""Check that a wheel holds one package with the files of all floors: ``python .github/check_wheel.py WHEEL``."""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = ("cluster", "pipeline", "serving")


def faults(wheel: Path, version: str | None) -> Iterator[str]:
    """What is wrong with the wheel, a sentence each.

    Parameters
    ----------
    wheel : the file
    version : that its metadata must have; None leaves that out
    """
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        stated = HeaderParser().parsestr(file.read(metadata).decode())["Version"]
    if version is not None and stated != version:
        yield f"the version is {stated}, not {version}"
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    if top != {"chorus"}:
        yield f"it installs {', '.join(sorted(top))}, not chorus alone"
    missing = sorted(expected() - names)
    if missing:
        yield f"{len(missing)} files are missing, the first is {missing[0]}"


def expected() -> set[str]:
    """Names that a wheel of this checkout has: every module, and what stands beside modules."""
    files = set((ROOT / "chorus").glob("*.py"))
    for folder in ("commands", "console", "builtin"):
        files |= set((ROOT / "chorus" / folder).rglob("*"))
    names = {path.relative_to(ROOT).as_posix() for path in files if path.is_file()}
    for floor in FLOORS:
        inside = [path for path in (ROOT / floor).rglob("*") if path.is_file()]
        names |= {f"chorus/{path.relative_to(ROOT).as_posix()}" for path in inside}
    return {name for name in names if "__pycache__" not in name}


def main() -> None:
    """Print the faults; exit code 1 where there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--version", help="that the wheel must have")
    arguments = parser.parse_args()
    found = list(faults(arguments.wheel, arguments.version))
    for fault in found:
        print(f"{arguments.wheel}: {fault}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
