"""Tables of the docs that are made of the registry: ``python -m chorus.pipeline.scores.documentation FILE ...``.

A file marks the position of a table by two comments, ``<!-- scores: NAME -->`` and ``<!-- scores: end -->``; everything
between them is replaced.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from chorus.pipeline.scores.flag_registry import FLAGS
from chorus.pipeline.scores.registry import FLAG_TABLE, IMAGE_TABLE, SCORES
from chorus.pipeline.scores.score import Score

_PLACE = re.compile(r"(<!-- scores: (?!end)(\S+) -->\n).*?(<!-- scores: end -->)", re.DOTALL)
_DOUBTFUL = {"high": "high", "low": "low", "both": "high or low", "neither": ""}


def with_tables(text: str) -> str:
    """Return a Markdown document with its tables of scores replaced by those of the registry.

    Raises
    ------
    KeyError
        If a comment names a table that does not exist.
    """
    return _PLACE.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}{match[3]}", text)


def _image_table() -> str:
    rows = [
        (f"`{score.pattern}`", score.label, _capital(score.meaning), score.unit, _DOUBTFUL[score.doubtful])
        for score in IMAGE_TABLE
        if not score.texture
    ]
    texture = ", ".join(f"`{score.pattern}`" for score in IMAGE_TABLE if score.texture)
    rows.append(
        (texture, "texture", "Haar details of 1, 2 and 4 px; each in docs/glossary.md", "", "unlike all together")
    )
    return _markdown(("column", "in words", "what it is", "unit or range", "doubtful when"), rows)


def _flag_table() -> str:
    rows = (
        (f"`{score.pattern}`", score.label, _capital(score.meaning), score.unit, score.believe) for score in FLAG_TABLE
    )
    return _markdown(("column", "in words", "what it is", "unit or range", "believe it when"), rows)


def _flags() -> str:
    return _markdown(("flag", "in words", "raised when"), ((f"`{one.name}`", one.label, one.raised) for one in FLAGS))


def _detectors() -> str:
    def what(score: Score) -> str:
        return _capital(score.meaning) if score.table == "sigma" else _DOUBTFUL[score.doubtful]

    detectors = [score for score in SCORES if score.detects]
    groups: dict[str, list[str]] = {}
    for score in detectors:
        groups.setdefault(what(score), []).append(f"`{score.pattern}`")
    return _markdown(("detector", "unusual when"), ((", ".join(names), text) for text, names in groups.items()))


def _glossary() -> str:
    files = {
        "scores": "`scores.parquet`",
        "flags": "`flags.parquet`",
        "evaluation": "report, review page",
        "sigma": "`sigma:` in `flags.parquet`",
        "run": "`scores.parquet`",
    }
    scores = [
        (_capital(score.label), score.meaning, f"{files[score.table]}: `{score.pattern}`")
        for score in SCORES
        if not (score.per == "class" and any(score.name == one.name and one.per == "image" for one in SCORES))
    ]
    flags = [(_capital(one.label), f"flag: {one.raised}", f"`flags.parquet`: `{one.name}` in `flags`") for one in FLAGS]
    return _markdown(("term", "meaning", "where it appears"), sorted([*scores, *flags], key=lambda row: row[0].lower()))


TABLES: dict[str, Callable[[], str]] = {
    "image": _image_table,
    "flags-table": _flag_table,
    "flags": _flags,
    "detectors": _detectors,
    "glossary": _glossary,
}
"""Functions that make each table, by the name in the comment."""


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n".replace("|  |", "| |").replace("|  |", "| |") for cells in lines)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] if text[1:2].isalpha() else text


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(with_tables(path.read_text()))
