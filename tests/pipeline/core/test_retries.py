"""The page on retries names every limit and its value, and limits stand nowhere else."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path

import pytest

from chorus.pipeline.core.retries import RETRIES, RetryLimits

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "retries.md").read_text()
ROW = re.compile(r"\| `(\w+)` \| ([\d.]+) \|")


def test_the_page_names_every_limit_once_with_its_value() -> None:
    named = ROW.findall(PAGE)
    assert Counter(name for name, _ in named) == Counter(field.name for field in fields(RetryLimits))
    assert {name: float(value) for name, value in named} == asdict(RETRIES)


def test_the_docstring_says_what_every_limit_is() -> None:
    assert RetryLimits.__doc__ is not None
    said = {
        name
        for line in RetryLimits.__doc__.splitlines()
        if (found := re.match(r"    ([a-z_, ]+) : ", line))
        for name in found[1].split(", ")
    }
    assert said == {field.name for field in fields(RetryLimits)}


def test_every_limit_is_used_by_the_code_that_it_is_about() -> None:
    sources = [path for room in ("cluster", "pipeline", "serving") for path in (ROOT / room).rglob("*.py")]
    texts = [path.read_text() for path in sources if path.name != "retries.py"]
    for field in fields(RetryLimits):
        assert any(f"RETRIES.{field.name}" in text for text in texts), field.name


def test_ray_is_told_no_other_number_of_retries() -> None:
    for path in (ROOT / "cluster").rglob("*.py"):
        for number in re.findall(r"""max_retries["']?\s*[=:]\s*(-?\d+)""", path.read_text()):
            assert number == "0", path  # whoever began it tries again itself


def test_limits_do_not_change_while_a_process_runs() -> None:
    with pytest.raises(FrozenInstanceError):
        RETRIES.streams = 4  # type: ignore[misc]
