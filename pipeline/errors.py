"""Errors are sentences for the person at the terminal: what, where, and what to do about it."""

from __future__ import annotations


class ChorusError(Exception):
    """Something that the user can mend; shown as one sentence, without a stack trace.

    The message says what is wrong, names the file and the field, and ends with the mend.
    """


class RefusedError(ChorusError):
    """Refused before any work: usage, settings or ensemble (exit code 2)."""


class ImageError(ChorusError):
    """One image cannot be done; it is recorded as failed and the rest of the dataset goes on (exit code 1)."""


class CutShortError(ChorusError):
    """The run cannot go on now; what is recorded stays, and the same command goes on from there (exit code 3)."""


class OutputError(CutShortError):
    """The place for the results cannot take them."""
