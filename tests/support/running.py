"""The command line in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from chorus.cli import main


class Result(NamedTuple):
    """What a command leaves behind: its exit code and what it printed."""

    code: int
    out: str
    err: str


Chorus = Callable[..., Result]


def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chorus:
    """``chorus`` with arguments: its exit code and what it printed, without line breaks within a sentence."""

    def call(*arguments: object) -> Result:
        monkeypatch.setenv("COLUMNS", "2000")
        monkeypatch.setattr(sys, "argv", ["chorus", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Result(code, *capsys.readouterr())

    return call
