"""Requests and answers as models: they define the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, field_validator

from chorus.pipeline.core.fields import FIELDS
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.scores.registry import column_of

JSON, NPZ, TIFF, ZIP = "application/json", "application/x-npz", "image/tiff", "application/zip"
ANSWERS = (JSON, NPZ, TIFF, ZIP)
OUTPUTS = ("labels", "objects", *FIELDS)


def _known_output(name: str) -> str:
    if name not in OUTPUTS:
        raise ValueError(f"{name!r} is no output; choose out of {', '.join(OUTPUTS)}")
    return name


Output = Annotated[str, AfterValidator(_known_output), WithJsonSchema({"type": "string", "enum": list(OUTPUTS)})]
"""Content of an answer besides the scores: labels, objects, and every field of `chorus.pipeline.core.fields`."""
Augmentation = Literal["identity", "hflip", "vflip", "hvflip", "rot90", "rot270", "transpose", "antitranspose"]
ChannelName = Annotated[str, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PredictOptions(_Strict):
    """How an image is predicted; defaults are those of `chorus predict`.

    Attributes
    ----------
    ensemble : name of one that this server has; the first one by default
    channels : names or indices, one per channel of the ensemble
    augmentations : the ensemble's own by default
    t, z : the plane
    window : ``y0:y1,x0:x1`` in pixels of the level; the result is that of the plane, cropped
    level : resolution level; by default chosen by pixel size
    diameter : of the objects in pixels of the image; pixel sizes are then ignored
    outputs : content of the answer besides the scores; objects are counted in JSON, too
    """

    ensemble: str | None = Field(default=None, max_length=40, examples=["nuclei-fluo"])
    channels: list[ChannelName] = Field(default=[], max_length=64, examples=[["dna"]])
    augmentations: list[Augmentation] | None = Field(default=None, min_length=1, max_length=8)
    t: int = Field(default=0, ge=0, lt=1 << 31)
    z: int = Field(default=0, ge=0, lt=1 << 31)
    window: str | None = Field(default=None, pattern=r"^\d{1,9}:\d{1,9},\d{1,9}:\d{1,9}$", examples=["0:512,128:640"])
    level: int | None = Field(default=None, ge=0, le=32)
    diameter: float | None = Field(default=None, gt=0, le=1e6, allow_inf_nan=False)
    outputs: list[Output] = Field(default=[], max_length=len(OUTPUTS), examples=[["labels", "uncertainty"]])

    @field_validator("augmentations")
    @classmethod
    def _each_once(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and len(set(names)) != len(names):
            raise ValueError("give each augmentation once")
        return names

    def place(self) -> Window | None:
        """Return the window as it was given; it may lie outside of the plane."""
        if self.window is None:
            return None
        y, x = (tuple(map(int, part.split(":"))) for part in self.window.split(","))
        return Window.of(y[0], y[1], x[0], x[1])


class SourceUrl(_Strict):
    """An image in storage, below a prefix that the operator allows.

    Attributes
    ----------
    url : of an OME-Zarr image, plate or collection
    image : path of the image inside it, such as ``B/3/0``; empty if `url` is the image
    """

    url: str = Field(min_length=1, max_length=2048, examples=["https://example.org/public/plate.ome.zarr"])
    image: str = Field(default="", max_length=512, examples=["B/3/0"])


class PredictRequest(_Strict):
    """An image by its URL."""

    source: SourceUrl
    options: PredictOptions = PredictOptions()


class EnsembleName(_Strict):
    """An ensemble, and the hash of everything that its results depend on."""

    name: str
    hash: str


class Prediction(BaseModel):
    """The result of an image.

    Attributes
    ----------
    id : of the request
    ensemble : that was used
    status : ``empty`` if nothing was found, else ``done``
    message : note for people
    shape : height and width of the plane or window, at its level
    scores : as in ``scores.parquet``, by column
    flags, reasons : whether it needs review, and why; of ensembles with a reference set
    expected_dice, dice_bound, risk, p_value : as in ``flags.parquet`` (`chorus.pipeline.scores.registry.STATED`); null
        without a reference set
    unjudged : why these are missing; null with a reference set
    objects : number per class, if requested
    seconds : in the server
    """

    id: str
    ensemble: EnsembleName
    status: Literal["done", "empty"]
    message: str = ""
    shape: tuple[int, int]
    scores: dict[str, float | None]
    flags: list[str] = []
    reasons: list[str] = []
    expected_dice: float | None = None
    dice_bound: float | None = None
    risk: float | None = None
    p_value: float | None = None
    unjudged: str | None = None
    objects: dict[str, int] | None = None
    seconds: float


class JobState(BaseModel):
    """The state of a large image.

    Attributes
    ----------
    state : ``queued``, ``running``, ``done``, ``failed`` or ``cancelled``
    regions, done : number of regions, and of those that are done
    detail : why it failed
    prediction : when it is done
    links : paths of its results and its events by name, relative to this server
    """

    id: str
    ensemble: EnsembleName
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    regions: int = 0
    done: int = 0
    detail: str = ""
    prediction: Prediction | None = None
    links: dict[str, str] = {}


class EnsembleInfo(BaseModel):
    """An ensemble of this server.

    Attributes
    ----------
    calibrated : whether it has a reference set, which judges its results
    unjudged : why they are not judged; null with a reference set
    """

    name: str
    hash: str
    title: str
    classes: list[str]
    channels: list[str]
    pixel_size_um: float | None
    members: int
    tile: int
    augmentations: list[str]
    flows: bool
    calibrated: bool
    unjudged: str | None = None
    outputs: list[Output]


class EnsembleList(BaseModel):
    """All ensembles; the first one is the default."""

    ensembles: list[EnsembleInfo]


class Health(BaseModel):
    """Whether the server is running, and each ensemble ready."""

    status: Literal["ok", "starting"]
    ensembles: dict[str, bool] = {}


class ReprocessRequest(_Strict):
    """A run of `chorus predict` on the cluster; sources, output and ensemble lie below allowed prefixes."""

    sources: list[str] = Field(min_length=1, max_length=1000)
    out: str = Field(min_length=1, max_length=2048)
    ensemble: str | None = Field(default=None, max_length=40)


def numbers(row: Mapping[str, str | float | None]) -> dict[str, float | None]:
    """Return the scores of a row of ``scores.parquet``, by column."""
    return {name: None if value is None else float(value) for name, value in row.items() if column_of(name)}
