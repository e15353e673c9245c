"""The ensembles that come with Chorus, and names that users may type in place of a URL."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from chorus.pipeline.errors import RefusedError

BUILTIN = Path(str(files("chorus"))) / "builtin"


def builtin_ensembles() -> dict[str, str]:
    """Return the URLs of the ensembles that come with Chorus, by name."""
    return {path.parent.name: str(path) for path in sorted(BUILTIN.glob("*/ensemble.yaml"))}


def named_ensemble(text: str) -> str:
    """Resolve the name of an ensemble: `text` itself, or the URL of the built-in ensemble of that name.

    A name has neither a slash nor a suffix; an existing file or folder of that name takes precedence.

    Raises
    ------
    RefusedError
        If there is neither.
    """
    if "/" in text or Path(text).suffix or Path(text).exists():
        return text
    known = builtin_ensembles()
    if text not in known:
        brought = f" ({', '.join(known)})" if known else ""
        raise RefusedError(
            f"ensemble {text}: neither a folder here nor an ensemble that Chorus brings{brought}; correct the path or "
            f"the name"
        )
    return known[text]
