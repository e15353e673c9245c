"""The one way from a root and a name that somebody else wrote to a URL: the name stays below the root, or is refused.

Names come from metadata of sources (images of a collection, wells, fields, arrays, labels), from ensembles and their
packages, from keys of buckets, lists, tables and requests.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import PurePosixPath
from urllib.parse import unquote

from chorus.pipeline.errors import ChorusError, RefusedError
from chorus.pipeline.io import storage

_DRIVE_OR_SCHEME = re.compile(r"[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]*:/")
# Beside Cc, Cs, Zl and Zp: those that turn the direction of what follows, so that a name reads as another one.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

# Bytes of a name in a file system are 255; results and their records add .ome.zarr and .json.
_LONGEST = 231


def fault(path: str) -> str | None:
    """Explain, as part of a sentence, why a path may leave the root it belongs below; None if it stays inside.

    Parameters
    ----------
    path : with ``/`` between its parts; a trailing one is allowed
    """
    if has_control_characters(path):
        return "has control characters or is not Unicode"
    # A web server takes %2e%2e for two dots.
    for written in (path, unquote(path)):
        if written.startswith("/") or _DRIVE_OR_SCHEME.match(written):
            return "is absolute"
        if "\\" in written:
            return "has a backslash"
        parts = written.removesuffix("/").split("/")
        if not all(part.strip(" .") for part in parts):
            return "leads out of its folder, or has an empty part"
        if "\0" in written:
            return "has control characters or is not Unicode"
    return None


def has_control_characters(text: str) -> bool:
    """Return whether a text has characters that are not shown, turn the direction of others, or are no Unicode."""
    return any(c in _TURNING or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)


def inside(root: str, path: str, error: type[ChorusError] = RefusedError, *, what: str = "name") -> str:
    """Return the URL of `path` below `root`.

    Parameters
    ----------
    path : what somebody else wrote
    error : raised where the path does not stay below `root`
    what : of the path, for the sentence

    Raises
    ------
    ChorusError
        Of type `error`, in one sentence.
    """
    if reason := fault(path):
        raise error(f"{root}: {what} {shown(path)} {reason}; give a plain path below it, such as A/1/0")
    return storage.join(root, path)


def readable(text: str) -> str:
    r"""Return a name that fits in a line, with ``\xfc`` for bytes that are not UTF-8 and ``\n`` for controls."""
    text = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) == "Cc" else c for c in text)


def fitting(name: str, key: str) -> str:
    """Return a name for results: `name`, or where it is too long for a file system, its begin and a digest of `key`.

    Parameters
    ----------
    name : what the result is called, without ``.ome.zarr``
    key : that tells it apart, such as the URL that it stands for
    """
    folder, slash, last = name.rpartition("/")
    if len(last.encode()) <= _LONGEST:
        return name
    begin = last.encode()[: _LONGEST - 31].decode(errors="ignore")
    return f"{folder}{slash}{begin}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def shown(text: str) -> str:
    """Quote a name from outside for a message: on one line and shortened."""
    return ascii(text if len(text) <= 80 else f"{text[:77]}...")


def is_name(text: str) -> bool:
    """Return whether a text is one plain part of a path, at most 200 bytes long."""
    return fault(text) is None and len(PurePosixPath(text).parts) == 1 and "/" not in text and len(text.encode()) <= 200
