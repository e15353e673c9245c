"""Where the checkout is, and the real data beside it."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("CHORUS_SHARED") or ROOT.parent / "shared")
"""Real microscopy data beside the checkout, or where CHORUS_SHARED says; it may be missing."""
