"""TIFFs that promise more planes than there are, sets with files missing, companions: no pixel is ever invented."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tifffile

from chorus.pipeline.core.geometry import Window
from chorus.pipeline.errors import ImageError
from chorus.pipeline.io.formats.rasters import PartOf, Raster
from chorus.pipeline.io.formats.registry import open_rasters

HEAD = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{}">'
SIZES = {"C": 1, "Z": 1, "T": 1}


def uuid(index: int) -> str:
    return f"urn:uuid:00000000-0000-0000-0000-{index:012d}"


def image(planes: str, index: int = 0, channels: tuple[str, ...] = ("dna",), **sizes: int) -> str:
    """An Image element of 40 x 30 pixels of 0.325 micrometers."""
    lengths = "".join(f'Size{axis}="{length}" ' for axis, length in (SIZES | {"C": len(channels)} | sizes).items())
    named = "".join(
        f'<Channel ID="Channel:{index}:{i}" Name="{name}" SamplesPerPixel="1"/>' for i, name in enumerate(channels)
    )
    return (
        f'<Image ID="Image:{index}"><Pixels ID="Pixels:{index}" DimensionOrder="XYZCT" Type="uint16" SizeX="40" '
        f'SizeY="30" {lengths}PhysicalSizeX="0.325" PhysicalSizeY="0.325">{named}{planes}</Pixels></Image>'
    )


def document(*images: str, own: int = 0) -> str:
    return HEAD.format(uuid(own)) + "".join(images) + "</OME>"


def in_files(files: Mapping[str, int], axis: str = "C") -> str:
    """TiffData of one plane per file."""
    return "".join(
        f'<TiffData First{axis}="{place}" IFD="0" PlaneCount="1"><UUID FileName="{name}">{uuid(index)}</UUID>'
        "</TiffData>"
        for place, (name, index) in enumerate(files.items())
    )


def write(path: Path, pages: int = 1, xml: str | None = None, value: int = 500, **options: object) -> Path:
    data = np.full((pages, 30, 40), value, "uint16")
    tifffile.imwrite(path, data, description=xml, metadata=None, photometric="minisblack", **options)  # type: ignore[arg-type]
    return path


def opened(path: Path) -> list[tuple[Raster, np.ndarray]]:
    """The images of a file, and their least values per channel."""
    with open_rasters(str(path)) as rasters:
        assert isinstance(rasters, list)
        window = Window.of(0, rasters[0].lengths["y"], 0, rasters[0].lengths["x"])
        return [(r, r.read(0, 0, range(r.lengths.get("c", 1)), window).min(axis=(1, 2))) for r in rasters]


def refusal(path: Path) -> str:
    with pytest.raises(ImageError) as raised:
        opened(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("axis", ["C", "Z", "T"])
def test_a_set_with_a_file_missing_fails_with_the_name_of_the_file(tmp_path: Path, missing: int, axis: str) -> None:
    files = {f"a_{index}.ome.tif": index for index in range(3)}
    channels = ("dna", "er", "golgi") if axis == "C" else ("dna",)
    sizes = {} if axis == "C" else {axis: 3}
    for name, index in files.items():
        xml = document(image(in_files(files, axis), channels=channels, **sizes), own=index)
        write(tmp_path / name, xml=xml, value=500 + index)
    assert len(opened(tmp_path / "a_0.ome.tif")) == 1
    (tmp_path / f"a_{missing}.ome.tif").unlink()
    message = refusal(tmp_path / f"a_{1 if missing == 0 else 0}.ome.tif")
    assert f"1 of its 3 planes are missing, since a_{missing}.ome.tif is not beside it; put all files" in message


@pytest.mark.parametrize("content", [b"", b"II*\0", b"no image"])
def test_a_damaged_file_of_a_set_fails_the_image(tmp_path: Path, content: bytes) -> None:
    files = {"a.ome.tif": 0, "b.ome.tif": 1}
    write(tmp_path / "a.ome.tif", xml=document(image(in_files(files), channels=("dna", "er"))))
    (tmp_path / "b.ome.tif").write_bytes(content)
    message = refusal(tmp_path / "a.ome.tif")
    assert "b.ome.tif" in message
    assert "damaged" in message


@pytest.mark.parametrize("planes", ["<TiffData/>", '<TiffData IFD="0" PlaneCount="6"/>', '<TiffData PlaneCount="4"/>'])
@pytest.mark.parametrize("axis", ["Z", "T"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}])
def test_ome_xml_that_promises_more_planes_is_refused(
    tmp_path: Path, planes: str, axis: str, options: dict[str, object]
) -> None:
    path = write(tmp_path / "a.ome.tif", 4, document(image(planes, **{axis: 6})), **options)
    assert "2 of its 6 planes are missing, the metadata promise more than the file has" in refusal(path)


def test_planes_that_ome_xml_does_not_list_are_missing(tmp_path: Path) -> None:
    listed = "".join(f'<TiffData FirstZ="{z}" IFD="{i}" PlaneCount="1"/>' for i, z in enumerate((0, 1, 3)))
    path = write(tmp_path / "a.ome.tif", 3, document(image(listed, Z=4)))
    assert "1 of its 4 planes are missing" in refusal(path)


def test_an_image_that_begins_beyond_the_last_page_is_refused(tmp_path: Path) -> None:
    one, two = (image(f'<TiffData IFD="{i}" PlaneCount="1"/>', i) for i in range(2))
    path = write(tmp_path / "a.ome.tif", 1, document(one, two))
    assert "image 1 of its metadata begins at page 1, but the file has 1" in refusal(path)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
@pytest.mark.parametrize("pages", [1, 4])
@pytest.mark.parametrize("axis", ["channels", "slices", "frames"])
def test_an_imagej_header_that_promises_more_images_is_refused(
    tmp_path: Path, axis: str, pages: int, options: dict[str, object]
) -> None:
    header = f"ImageJ=1.53t\nimages=6\n{axis}=6\nhyperstack=true\n"
    path = write(tmp_path / "a.tif", pages, header, **options)
    assert f"{6 - pages} of its 6 planes are missing" in refusal(path)


def test_an_imagej_stack_whose_planes_have_no_pages_is_read_as_long_as_they_are_there(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((6, 30, 40), 7, "uint16"), imagej=True, metadata={"axes": "ZYX"})
    ((raster, _),) = opened(tmp_path / "a.tif")
    assert raster.lengths["z"] == 6
    tifffile.imwrite(tmp_path / "rgb.tif", np.full((30, 40, 3), 7, "uint8"), imagej=True)
    assert opened(tmp_path / "rgb.tif")[0][0].lengths["c"] == 3


def test_an_image_without_planes_does_not_take_the_metadata_of_the_others(tmp_path: Path) -> None:
    plane = '<TiffData IFD="0" PlaneCount="1"/>'
    for name, images in {
        "last": (image(plane, 0), image("<MetadataOnly/>", 1, ("er",))),
        "first": (image("<MetadataOnly/>", 0, ("er",)), image(plane, 1)),
        "both": (image("", 0, ("er",)), image(plane, 1), image("<MetadataOnly/>", 2, ("er",))),
    }.items():
        ((raster, _),) = opened(write(tmp_path / f"{name}.ome.tif", 1, document(*images)))
        assert (raster.channels, raster.scale) == (("dna",), {"y": 0.325, "x": 0.325})


def companion(folder: Path, name: str = "a.companion.ome") -> list[Path]:
    """Two files of a channel each, whose metadata are in a third."""
    files = {"a_C0.ome.tif": 0, "a_C1.ome.tif": 1}
    for file, index in files.items():
        pointer = f'<BinaryOnly MetadataFile="{name}" UUID="{uuid(9)}"/>'
        write(folder / file, xml=HEAD.format(uuid(index)) + pointer + "</OME>", value=500 + index)
    (folder / name).write_text(document(image(in_files(files), channels=("dna", "er")), own=9))
    return [folder / file for file in files]


def test_a_companion_file_gives_planes_names_and_sizes(tmp_path: Path) -> None:
    first, second = companion(tmp_path)
    ((raster, values),) = opened(first)
    assert (raster.axes, raster.channels) == ("cyx", ("dna", "er"))
    assert raster.scale == {"y": 0.325, "x": 0.325}
    assert values.tolist() == [500, 501]
    with open_rasters(str(second)) as found:
        assert found == PartOf(str(first))


def test_a_file_without_its_companion_fails_and_names_it(tmp_path: Path) -> None:
    first, second = companion(tmp_path)
    data = first.read_bytes()
    with pytest.raises(ImageError, match=r"a\.companion\.ome, which is not beside it"), open_rasters("a.ome.tif", data):
        pass
    second.unlink()
    assert "since a_C1.ome.tif is not beside it" in refusal(first)
    (tmp_path / "a.companion.ome").write_text("<OME")
    assert "a.companion.ome, which is no OME-XML" in refusal(first)
    (tmp_path / "a.companion.ome").write_text(document(image("<TiffData/>"), own=9).replace(uuid(0), uuid(5)))
    assert "does not list it" in refusal(first)
    (tmp_path / "a.companion.ome").unlink()
    assert "a.companion.ome, which is not beside it; put both in one folder" in refusal(first)


def test_a_companion_is_looked_for_in_the_folder_of_its_file_only(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    first, _ = companion(tmp_path / "in")
    (tmp_path / "in" / "a.companion.ome").rename(tmp_path / "a.companion.ome")
    write(first, xml=HEAD.format(uuid(0)) + '<BinaryOnly MetadataFile="../a.companion.ome" UUID="u"/></OME>')
    assert "../a.companion.ome, which is not beside it" in refusal(first)


def test_the_metadata_of_a_set_may_be_in_one_of_its_tiffs(tmp_path: Path) -> None:
    files = {"a.ome.tif": 0, "b.ome.tif": 1}
    master = document(image(in_files(files), channels=("dna", "er")))
    write(tmp_path / "a.ome.tif", xml=master, value=500)
    pointer = f'<BinaryOnly MetadataFile="a.ome.tif" UUID="{uuid(0)}"/></OME>'
    write(tmp_path / "b.ome.tif", xml=HEAD.format(uuid(1)) + pointer, value=501)
    ((raster, values),) = opened(tmp_path / "a.ome.tif")
    assert (raster.channels, values.tolist()) == (("dna", "er"), [500, 501])
    with open_rasters(str(tmp_path / "b.ome.tif")) as found:
        assert found == PartOf(str(tmp_path / "a.ome.tif"))


def test_a_set_whose_files_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    files = {"a.ome.tif": 0, "b.ome.tif": 1}
    path = write(tmp_path / "a.ome.tif", xml=document(image(in_files(files), channels=("dna", "er"))))
    with pytest.raises(ImageError, match=r"planes are missing"), open_rasters("a.ome.tif", path.read_bytes()):
        pass
