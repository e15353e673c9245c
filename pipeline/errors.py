"""Errors are sentences for the person at the terminal: what, where, and what to do about it."""

from __future__ import annotations

import re


class ChorusError(Exception):
    """Something that the user can mend; shown as one sentence, without a stack trace.

    The message says what is wrong, names the file and the field, and ends with the mend.
    """


class RefusedError(ChorusError):
    """Refused before any work: usage, settings or ensemble (exit code 2)."""


class DamagedError(RefusedError):
    """A file that Chorus wrote is cut, or does not hold what it should."""


class ImageError(ChorusError):
    """One image cannot be done; it is recorded as failed and the rest of the dataset goes on (exit code 1)."""


class CutShortError(ChorusError):
    """The run cannot go on now; what is recorded stays, and the same command goes on from there (exit code 3)."""


class OutputError(CutShortError):
    """The place for the results cannot take them."""


class OvertakenError(OutputError):
    """Another run holds the output now; this one writes nothing more."""


def reason_of(message: str) -> str:
    """Return what pydantic says of a field, without its prefix of what a model's own checks say."""
    return message.removeprefix("Value error, ")


def first_line(error: object) -> str:
    """Of what an error of a library says: printable, without colours, at most 200 characters."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return "".join(c for c in text if c.isprintable())[:200]
