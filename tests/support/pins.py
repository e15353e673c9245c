"""Versions that requirements/ pins."""

from __future__ import annotations

import re

from tests.support.paths import ROOT

USES = ("dev", "docs", "installer", "release", "run", "workflows")


def pins(use: str) -> dict[str, str]:
    """Version by normalised name of what is installed for a use."""
    text = (ROOT / "requirements" / f"{use}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))
