"""What the command line leaves behind when it is called in a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Result(NamedTuple):
    code: int
    out: str
    err: str


Chorus = Callable[..., Result]
