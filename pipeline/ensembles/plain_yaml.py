"""YAML that a stranger wrote, as plain values of bounded size."""

from __future__ import annotations

from typing import Any

import yaml

_BYTES, _VALUES, _DEPTH = 4 << 20, 100_000, 64
_INTEGER = 1 << 63


class NotPlainError(ValueError):
    """A text is no YAML, or more of it than a file of settings has."""


def plain_yaml(data: bytes) -> Any:
    """Parse a YAML document of plain values.

    Raises
    ------
    NotPlainError
        If it is not YAML in UTF-8, or its values are not plain: dates that do not exist, infinite numbers, lists nested
        too deeply, or aliases that expand to more than a settings file can have.
    """
    if len(data) > _BYTES:
        raise NotPlainError(f"more than {_BYTES >> 20} MiB")
    try:
        content = yaml.safe_load(data.decode())
    except RecursionError as error:
        raise NotPlainError("too many lists within lists") from error
    # What PyYAML lets through of its own constructors of numbers, dates and tags.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise NotPlainError(str(error) or type(error).__name__) from error
    _check(content)
    return content


def _check(content: Any) -> None:
    """Count each alias as often as it occurs; an alias to a node that contains it is infinite."""
    level, seen = [content], 0
    for _ in range(_DEPTH):
        seen += len(level)
        if seen > _VALUES:
            raise NotPlainError(f"more than {_VALUES} values")
        if any(isinstance(value, int) and abs(value) >= _INTEGER for value in level):
            raise NotPlainError("a number is too large")
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += [*value.keys(), *value.values()]
            elif isinstance(value, list | tuple | set):
                below += value
            if len(below) > _VALUES:
                raise NotPlainError(f"more than {_VALUES} values")
        if not below:
            return
        level = below
    raise NotPlainError("too many lists within lists")
