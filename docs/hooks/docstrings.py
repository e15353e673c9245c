"""An extension of griffe: ``name : what it is`` in a docstring is a description, and the type is the signature's.

A paragraph that ends with ``::`` ends with a colon in Markdown, and one of nothing else is left out.

NumPy's form is ``name : type`` with the description below. Where a type stands in the signature already, our docstrings
put the description after the colon, where it may go on in indented lines that begin in lower case.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Module, Object

_SECTION = re.compile(r"^(Attributes|Parameters|Other Parameters)\n-+\n((?:.*\n?)*?)(?=^\S.*\n-+$|\Z)", re.MULTILINE)
_ITEM = re.compile(r"^([\w*][\w*, ]*) : (.+)\n?((?:[ \t]+\S.*\n?)*)", re.MULTILINE)


def described(docstring: str) -> str:
    """Move such descriptions below the names, as NumPy's form has them."""

    def item(match: re.Match[str]) -> str:
        names, first, below = match[1], match[2], match[3]
        if below and not below.lstrip()[0].islower() and not below.lstrip()[0].isdigit():
            return match[0]
        lines = [first, *below.splitlines()]
        return names + "\n" + "".join(f"    {line.strip()}\n" for line in lines)

    def section(match: re.Match[str]) -> str:
        head, body = match[0][: match.start(2) - match.start()], match[2]
        return head + _ITEM.sub(item, body)

    text = re.sub(r"^[ \t]*::$", "", _SECTION.sub(section, docstring), flags=re.MULTILINE)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)


class Descriptions(Extension):
    """Rewrites docstrings when they are loaded."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring of anything but a whole package."""
        _rewrite(obj)

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """Rewrite the docstring of a whole package, which is no object to `on_object`."""
        _rewrite(pkg)


def _rewrite(documented: Object) -> None:
    if documented.docstring:
        documented.docstring.value = described(documented.docstring.value)
