"""Units as files write them: NGFF's, UDUNITS', OME's, and what people and programs make of them."""

from __future__ import annotations

import pytest

from chorus.pipeline.core.units import micrometers, seconds

# All units of length and time that NGFF 0.4 and 0.5 list, in metres and seconds.
LENGTHS = {
    "angstrom": 1e-10, "attometer": 1e-18, "centimeter": 1e-2, "decimeter": 1e-1, "exameter": 1e18,
    "femtometer": 1e-15, "foot": 0.3048, "gigameter": 1e9, "hectometer": 1e2, "inch": 0.0254, "kilometer": 1e3,
    "megameter": 1e6, "meter": 1.0, "micrometer": 1e-6, "mile": 1609.344, "millimeter": 1e-3, "nanometer": 1e-9,
    "parsec": 3.0856775814913674e16, "petameter": 1e15, "picometer": 1e-12, "terameter": 1e12, "yard": 0.9144,
    "yoctometer": 1e-24, "yottameter": 1e24, "zeptometer": 1e-21, "zettameter": 1e21,
}  # fmt: skip
TIMES = {
    "attosecond": 1e-18, "centisecond": 1e-2, "day": 86_400.0, "decisecond": 1e-1, "exasecond": 1e18,
    "femtosecond": 1e-15, "gigasecond": 1e9, "hectosecond": 1e2, "hour": 3600.0, "kilosecond": 1e3, "megasecond": 1e6,
    "microsecond": 1e-6, "millisecond": 1e-3, "minute": 60.0, "nanosecond": 1e-9, "petasecond": 1e15,
    "picosecond": 1e-12, "second": 1.0, "terasecond": 1e12, "yoctosecond": 1e-24, "yottasecond": 1e24,
    "zeptosecond": 1e-21, "zettasecond": 1e21,
}  # fmt: skip


@pytest.mark.parametrize(("unit", "metres"), LENGTHS.items())
def test_every_length_of_ngff_is_known(unit: str, metres: float) -> None:
    assert micrometers(unit) == pytest.approx(metres * 1e6, rel=1e-9)
    assert seconds(unit) is None


@pytest.mark.parametrize(("unit", "duration"), TIMES.items())
def test_every_time_of_ngff_is_known(unit: str, duration: float) -> None:
    assert seconds(unit) == pytest.approx(duration, rel=1e-9)
    assert micrometers(unit) is None


@pytest.mark.parametrize(
    "unit",
    [
        "micrometer", "Micrometers", "MICROMETRE", "micrometres", "micron", "microns", "um", "UM", "Um", "\u00b5m",
        "\u03bcm", "\\u00B5m", "&micro;m", "\u00c2\u00b5m", " um ", "um\0", "micro-meter", "micro meter", "\u00b5",
        "\u00b5m/pixel", "um/px", "microns per pixel", "[um]", "micrometer.", "microm\u00e8tre", "1e-6 m", "0.001 mm",
    ],
)  # fmt: skip
def test_one_micrometer_in_many_spellings(unit: str) -> None:
    assert micrometers(unit) == 1.0


@pytest.mark.parametrize(
    ("unit", "size"),
    [
        ("nm", 1e-3), ("nanometers", 1e-3), ("mm", 1e3), ("MM", 1e3), ("Mm", 1e12), ("pm", 1e-6), ("Pm", 1e21),
        ("\u00c5", 1e-4), ("\u212b", 1e-4), ("\u00e5ngstr\u00f6m", 1e-4), ("angstroms", 1e-4), ("inches", 25_400.0),
        ("in", 25_400.0), ("feet", 304_800.0), ("ft", 304_800.0), ("pt", 25_400 / 72), ("10 nm", 1e-2), ("cm", 1e4),
    ],
)  # fmt: skip
def test_symbols_plurals_and_multiples(unit: str, size: float) -> None:
    assert micrometers(unit) == pytest.approx(size, rel=1e-9)


@pytest.mark.parametrize(
    "unit",
    [None, "", "pixel", "pixels", "px", "reference frame", "furlong", "arbitrary", 3, "1", "-1 um", "1e999 m", "?"],
)
def test_what_is_no_length_is_none(unit: object) -> None:
    assert micrometers(unit) is None


@pytest.mark.parametrize(
    ("unit", "size"), [("s", 1), ("sec", 1), ("ms", 1e-3), ("\u00b5s", 1e-6), ("min", 60), ("h", 3600)]
)
def test_times_as_programs_write_them(unit: str, size: float) -> None:
    assert seconds(unit) == size
