"""Units of length and time, in every spelling that files have: NGFF, UDUNITS, OME-XML, ImageJ, and people's.

Names are those of SI with their prefixes (American and British, singular and plural) and the few others that NGFF
lists; symbols keep their case where it tells units apart (mm, Mm).
"""

from __future__ import annotations

import html
import math
import re
import unicodedata

_PREFIXES = {
    "quecto": ("q", -30), "ronto": ("r", -27), "yocto": ("y", -24), "zepto": ("z", -21), "atto": ("a", -18),
    "femto": ("f", -15), "pico": ("p", -12), "nano": ("n", -9), "micro": ("u", -6), "milli": ("m", -3),
    "centi": ("c", -2), "deci": ("d", -1), "deca": ("da", 1), "deka": ("da", 1), "hecto": ("h", 2), "kilo": ("k", 3),
    "mega": ("M", 6), "giga": ("G", 9), "tera": ("T", 12), "peta": ("P", 15), "exa": ("E", 18), "zetta": ("Z", 21),
    "yotta": ("Y", 24), "ronna": ("R", 27), "quetta": ("Q", 30),
}  # fmt: skip
# Metres and seconds of units that are not of SI.
_OTHER_LENGTHS = {
    "micron": 1e-6, "angstrom": 1e-10, "inch": 0.0254, "inches": 0.0254, "foot": 0.3048, "feet": 0.3048,
    "internationalinch": 0.0254, "internationalfoot": 0.3048, "yard": 0.9144, "mile": 1609.344, "thou": 2.54e-5,
    "mil": 2.54e-5, "point": 0.0254 / 72, "astronomicalunit": 149_597_870_700.0, "lightyear": 9_460_730_472_580_800.0,
    "parsec": 648_000 / math.pi * 149_597_870_700.0,
}  # fmt: skip
_LENGTH_SYMBOLS = {
    "Å": 1e-10, "in": 0.0254, "″": 0.0254, '"': 0.0254, "ft": 0.3048, "yd": 0.9144, "mi": 1609.344, "pt": 0.0254 / 72,
    "li": 0.0254 / 12, "ua": 149_597_870_700.0, "au": 149_597_870_700.0, "ly": 9_460_730_472_580_800.0,
    "pc": 648_000 / math.pi * 149_597_870_700.0, "μ": 1e-6,
}  # fmt: skip
_OTHER_TIMES = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "nsec": 1e-9, "minute": 60.0, "min": 60.0, "hour": 3600.0,
                "hr": 3600.0, "day": 86_400.0}  # fmt: skip
_TIME_SYMBOLS = {"h": 3600.0, "d": 86_400.0}
_MULTIPLE = re.compile(r"([-+]?[\d.]+(?:e[-+]?\d+)?)\s*\*?\s*(?=\D)", re.IGNORECASE)


def _tables(
    stems: tuple[str, ...], symbol: str, others: dict[str, float], symbols: dict[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Build the base units per name, in lower case, and per symbol."""
    names = dict.fromkeys(stems, 1.0) | others
    for prefix, (_, power) in _PREFIXES.items():
        names |= {prefix + stem: float(f"1e{power}") for stem in stems}
    names |= {f"{name}s": value for name, value in names.items() if not name.endswith("s")}
    known = {symbol: 1.0} | {f"{short}{symbol}": float(f"1e{power}") for short, power in _PREFIXES.values()}
    return names, known | {f"μ{symbol}": 1e-6} | symbols


_LENGTHS = _tables(("meter", "metre"), "m", _OTHER_LENGTHS, _LENGTH_SYMBOLS)
_TIMES = _tables(("second",), "s", _OTHER_TIMES, _TIME_SYMBOLS)


def micrometers(unit: object) -> float | None:
    """Return the length of a unit of a file in micrometers; None if it is no unit of length."""
    length = _base(unit, *_LENGTHS)
    return None if length is None else float(f"{length * 1e6:.12g}")


def seconds(unit: object) -> float | None:
    """Return the duration of a unit of a file in seconds; None if it is no unit of time."""
    return _base(unit, *_TIMES)


def _base(unit: object, names: dict[str, float], symbols: dict[str, float]) -> float | None:
    """Return the metres or seconds of `unit`; None if unknown."""
    if not isinstance(unit, str):
        return None
    text = _plain(unit)
    factor = 1.0
    if multiple := _MULTIPLE.match(text):
        try:
            factor = float(multiple[1])
        except ValueError:
            return None
        text = text[multiple.end() :]
    text = re.sub(r"\s*(?:/|\bper\b)\s*(?:pixel|px|voxel|vx)s?$", "", text.strip(), flags=re.IGNORECASE).strip("[]() ")
    # A symbol is also known without its case where that leaves one unit of microscopy: UM, Mm is not mm.
    known = symbols.get(text) or names.get(_word(text)) or symbols.get(text.lower())
    return None if known is None or not math.isfinite(factor) or factor <= 0 else known * factor


def _plain(unit: str) -> str:
    """Return `unit` with a plain µ, undoing what programs make of that letter."""
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), html.unescape(unit))
    text = text.replace("Âµ", "µ").replace("Î¼", "μ").replace("Ã…", "Å")
    return unicodedata.normalize("NFKC", text).strip().strip("\0").strip()


def _word(text: str) -> str:
    """Strip case, accents, and what may stand between prefix and unit from a name."""
    letters = unicodedata.normalize("NFD", text.lower())
    return re.sub(r"[\s_-]", "", "".join(letter for letter in letters if not unicodedata.combining(letter))).rstrip(".")


def finite_number(text: str | None) -> float:
    """Return the number that metadata hold as text; 0 where it is missing, no number, or not finite."""
    try:
        value = float(text or 0)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0
