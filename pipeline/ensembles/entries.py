"""Parts of ``ensemble.yaml``: a class, the input, a sentinel."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from chorus.pipeline.core.geometry import Axes, Padding, of_each
from chorus.pipeline.core.strict import Strict
from chorus.pipeline.io.inside import fault
from chorus.pipeline.preprocessing.normalisation import Normalisation

PixelSize = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ClassEntry(Strict):
    """A class: its name and, but for the background, its colour."""

    name: str = Field(min_length=1)
    color: str | None = Field(default=None, pattern=r"^#[0-9a-fA-F]{6}$")

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        # It names arrays, columns and the folders of label images.
        if fault(f"x/{name.strip('/')}") or len(name.encode()) > 200:
            raise ValueError("give a plain name, of at most 200 bytes")
        return name


class InputEntry(Strict):
    """The data that the members were trained on.

    Attributes
    ----------
    channels : names, in the members' order
    axes : of what a member sees at once: planes, ``yx``, or volumes, ``zyx``
    pixel_size_um : micrometres per pixel, of volumes also one for each of z, y, x; None takes images as they are
    diameter_px : of the objects, in pixels; for runs that say what it is in their images instead of the pixel size
    scale : ``dtype`` divides integers by their type's maximum first
    padding : what tiles see beyond the image's edges: its mirrored pixels, or 0 after normalisation
    """

    channels: list[str] = Field(min_length=1)
    axes: Axes = "yx"
    pixel_size_um: PixelSize | tuple[PixelSize, PixelSize, PixelSize] | None = None
    diameter_px: float | None = Field(default=None, gt=0)
    scale: Literal["dtype"] | None = None
    padding: Padding = "mirror"
    normalisation: Normalisation

    @property
    def pixel_sizes_um(self) -> tuple[float, ...] | None:
        """Micrometres per pixel on each axis."""
        return None if self.pixel_size_um is None else of_each(self.pixel_size_um, len(self.axes))

    @property
    def plane_pixel_um(self) -> float | None:
        """Micrometres per pixel of an ensemble of planes, whose pixels are square."""
        if isinstance(self.pixel_size_um, tuple):
            raise TypeError("the members take volumes, whose pixel sizes differ")
        return self.pixel_size_um

    @model_validator(mode="after")
    def _of_axes(self) -> InputEntry:
        if self.axes == "yx" and isinstance(self.pixel_size_um, tuple):
            raise ValueError("pixel_size_um: give one number, pixels of planes are square; or set axes: zyx")
        if self.axes == "zyx" and self.diameter_px is not None:
            raise ValueError("diameter_px: is for ensembles of planes; give pixel_size_um, one for each of z, y, x")
        return self


class SentinelSettings(Strict):
    """How a sentinel's Dice was measured.

    Attributes
    ----------
    tile, overlap, augmentations : with others Dice may be another, and shows no fault
    precision, device : for people; another one must not move Dice by more than the tolerance
    """

    tile: int
    overlap: float
    augmentations: list[str]
    precision: str = "fp32"
    device: str = "cpu"


class Sentinel(Strict):
    """A labelled image that every run processes first, to check that the ensemble's results have not changed.

    Attributes
    ----------
    image : path of an OME-Zarr image, relative to ``ensemble.yaml``
    label : name of the label image inside it
    dice : by foreground class, 0 to 1
    tolerance : by how much Dice may move
    measured : None where it was with the ensemble's own settings
    """

    name: str = Field(min_length=1)
    image: str = Field(min_length=1)
    label: str = Field(min_length=1)
    dice: dict[str, float] = Field(min_length=1)
    tolerance: float = Field(default=0.01, gt=0, lt=1)
    measured: SentinelSettings | None = None
