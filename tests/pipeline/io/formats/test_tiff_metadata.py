"""Pixel sizes of TIFFs: print resolutions, slide scanners' descriptions, and the pictures beside an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from chorus.pipeline.io.formats.rasters import Raster
from chorus.pipeline.io.formats.registry import open_rasters

PIXELS = np.full((48, 64), 500, "uint16")
APERIO = "Aperio Image Library v11\n256x256 "


def rasters(path: Path) -> list[Raster]:
    with open_rasters(str(path)) as found:
        assert isinstance(found, list)
        return found


@pytest.mark.parametrize("dpi", [72, 96, 150, 300, 600])
@pytest.mark.parametrize("unit", ["inch", "in", "inches", "cm", "mm", "um", "\\u00B5m"])
def test_a_print_resolution_is_no_pixel_size_in_imagej(tmp_path: Path, dpi: int, unit: str) -> None:
    per_unit = dpi / {"cm": 2.54, "mm": 25.4, "um": 25_400, "\\u00B5m": 25_400}.get(unit, 1)
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, imagej=True, resolution=(per_unit, per_unit), metadata={"unit": unit})
    assert rasters(tmp_path / "a.tif")[0].scale == {}


@pytest.mark.parametrize("dpi", [72, 96, 150, 300, 600])
@pytest.mark.parametrize(("unit", "factor"), [("µm", 1.0), ("mm", 1e-3), ("in", 1 / 25_400), ("pt", 72 / 25_400)])
def test_a_print_resolution_is_no_pixel_size_in_ome_xml(tmp_path: Path, dpi: int, unit: str, factor: float) -> None:
    size = float(f"{25_400 / dpi * factor:.7g}")
    metadata: dict[str, Any] = {"axes": "YX", "PhysicalSizeX": size, "PhysicalSizeY": size}
    metadata |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS, metadata=metadata)
    assert rasters(tmp_path / "a.ome.tif")[0].scale == {}


def test_sizes_of_microscopes_stay_also_large_ones(tmp_path: Path) -> None:
    for size in (0.1, 0.65, 5.0, 25.0, 100.0):
        metadata = {"axes": "YX", "PhysicalSizeX": size, "PhysicalSizeY": size}
        tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS, metadata=metadata)
        assert rasters(tmp_path / "a.ome.tif")[0].scale == {"y": size, "x": size}
    tifffile.imwrite(tmp_path / "b.tif", PIXELS, imagej=True, resolution=(50_800, 50_800), metadata={"unit": "inch"})
    assert rasters(tmp_path / "b.tif")[0].scale == {"y": 0.5, "x": 0.5}


def write_slide(path: Path, mpp: str = "MPP = 0.4990", *, tile: tuple[int, int] | None = (64, 64)) -> None:
    rgb = np.zeros((256, 256, 3), "uint8")
    parts: list[tuple[Any, Any, int, str]] = [
        (rgb, tile, 0, f"(64x64) J|AppMag = 20|{mpp}"),
        (rgb[::4, ::4], None, 0, f"-> 64x64 - |AppMag = 20|{mpp}"),
        (rgb[::2, ::2], tile, 0, "(64x64) -> 128x128"),
        (rgb[:50, :60], None, 1, "label 60x50"),
        (rgb[:70, :90], None, 9, "macro 90x70"),
    ]
    with tifffile.TiffWriter(path) as writer:
        for pixels, tiles, kind, text in parts:
            head = "Aperio Image Library v11\n" if "x50" in text or "x70" in text else APERIO
            writer.write(
                pixels, tile=tiles, photometric="rgb", subfiletype=kind, description=head + text, metadata=None
            )


@pytest.mark.parametrize("mpp", ["MPP = 0.4990", "MPP=0.499", "MPP = 0,4990", "mpp: 4.99e-1"])
def test_a_slide_is_one_image_of_the_size_that_its_description_says(tmp_path: Path, mpp: str) -> None:
    write_slide(tmp_path / "a.tif", mpp)
    (raster,) = rasters(tmp_path / "a.tif")
    assert (raster.shape, raster.scale) == ((3, 256, 256), {"y": 0.499, "x": 0.499})
    assert "thumbnail, label, macro left out" in raster.note


def test_a_size_that_is_none_is_left_out(tmp_path: Path) -> None:
    for mpp in ("MPP = 0", "MPP = unknown", "AppMag = 20"):
        write_slide(tmp_path / "a.tif", mpp)
        assert rasters(tmp_path / "a.tif")[0].scale == {}


def test_a_description_of_another_program_gives_the_size_too(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, description="Scanned|MPP = 0.2525|", metadata=None)
    assert rasters(tmp_path / "a.tif")[0].scale == {"y": 0.2525, "x": 0.2525}


def test_a_reduced_page_is_no_image_of_its_own(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(PIXELS, metadata=None)
        writer.write(PIXELS[:10, :11], subfiletype=1, metadata=None)
    (raster,) = rasters(tmp_path / "a.tif")
    assert raster.shape == (48, 64)


def test_pictures_beside_an_ome_image_are_left_out_but_masks_are_not(tmp_path: Path) -> None:
    rgb = np.zeros((20, 30, 3), "uint8")
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        writer.write(PIXELS, metadata={"axes": "YX", "Name": "slide"})
        for name in ("label image", "macro image"):
            writer.write(rgb, photometric="rgb", metadata={"axes": "YXS", "Name": name})
        writer.write(PIXELS, metadata={"axes": "YX", "Name": "label"})
    found = rasters(tmp_path / "a.ome.tif")
    assert [raster.axes for raster in found] == ["yx", "yx"]
    assert "label image, macro image left out" in found[0].note


def test_a_file_of_a_macro_alone_is_an_image(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        writer.write(np.zeros((20, 30, 3), "uint8"), photometric="rgb", metadata={"axes": "YXS", "Name": "macro"})
    assert len(rasters(tmp_path / "a.ome.tif")) == 1
