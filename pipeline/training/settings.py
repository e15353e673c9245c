"""Training settings: everything that determines the result of a fold, in one frozen record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from chorus.pipeline.core.geometry import Axes, of_each, shown_size
from chorus.pipeline.core.strict import Strict
from chorus.pipeline.ensembles.entries import PixelSize
from chorus.pipeline.ensembles.spec import COLORS
from chorus.pipeline.errors import reason_of
from chorus.pipeline.members.kinds.smp import SmpMember
from chorus.pipeline.members.kinds.unet import USUAL_STAGES, UnetDesign, usual_design
from chorus.pipeline.preprocessing.normalisation import Normalisation, Percentile

LossName = Literal["ce_dice", "focal", "tversky", "lovasz"]
STRIDE = 32
"""Edges of patches and tiles of planes are multiples of this: encoders halve them five times."""
UNETS = ("PlainConvUNet", "ResidualEncoderUNet")
"""Architectures of networks of volumes."""
_VOLUMES: dict[str, Any] = {
    "architecture": UNETS[0],
    "encoder": None,
    "imagenet": False,
    "batch": 2,
    "patch": (32, 64, 64),
}
"""Defaults of settings of volumes that differ from those of planes; tiles are as large as patches."""
_SQUARE = 1.1  # pixels whose edges on y and x differ by less are square
_Edge = Annotated[int, Field(ge=STRIDE, le=4096, multiple_of=STRIDE)]
_VolumeEdge = Annotated[int, Field(ge=1, le=1024)]
_Edges = tuple[_VolumeEdge, _VolumeEdge, _VolumeEdge]


class Augment(Strict):
    """Augmentation of patches; flips and quarter turns are always applied.

    Attributes
    ----------
    rotation : maximum in degrees in either direction, besides the quarter turns; 0 for none
    scale : the smallest and the largest magnification
    gamma, contrast : the largest factor of either, and its inverse the smallest; 1 for none
    noise : the largest standard deviation, as a share of the image's range of intensities
    clahe : half of the patches have their contrast equalised locally (scikit-image), to a random degree
    elastic : half of the patches are deformed smoothly (torchvision)
    blur : half of the patches are defocused, by a Gaussian of at most this standard deviation in pixels
    shading : half of the patches are lit unevenly; at most this share of the light is missing at the darkest pixel
    photons : half of the patches get photon noise, with at least this number of photons at the upper end of the
        image's range of intensities, and at most a hundred times as many; 0 for none
    offset : the largest shift of intensities in either direction, as a share of the range; `contrast` is the gain
    cutout : half of the patches have a rectangle without signal, its edge at most this share of the patch's
    """

    rotation: float = Field(default=180.0, ge=0, le=180)
    scale: tuple[Annotated[float, Field(ge=0.25)], Annotated[float, Field(le=4)]] = (0.8, 1.25)
    gamma: float = Field(default=1.4, ge=1, le=4)
    contrast: float = Field(default=1.3, ge=1, le=4)
    noise: float = Field(default=0.04, ge=0, le=1)
    clahe: bool = False
    elastic: bool = False
    blur: float = Field(default=0.0, ge=0, le=16)
    shading: float = Field(default=0.0, ge=0, lt=1)
    photons: float = Field(default=0.0, ge=0)
    offset: float = Field(default=0.0, ge=0, le=1)
    cutout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        """Check the order of the scales."""
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: the smallest ({self.scale[0]:g}) is larger than the largest ({self.scale[1]:g})")
        return self


class TrainSettings(Strict):
    """The recipe of an ensemble. Equal settings, images and kind of device give equal members.

    Attributes
    ----------
    axes : of what members see: planes, ``yx``, or volumes, ``zyx``
    architecture, encoder, options : of segmentation-models-pytorch (``tu-...`` encoders are timm's); those of `start`
        take precedence. Of volumes one of `UNETS`, no encoder, and fields of
        `chorus.pipeline.members.kinds.unet.UnetDesign`, which follow from patch and pixel size where they are not given
    imagenet : begin with the encoder's ImageNet weights if they are available, else with random ones
    start : a member to fine-tune, its `weights` an absolute path or URL; its head is replaced if classes differ
    classes, colors : background first; colours are chosen if none are given
    labels : meaning of values in label images: ``instances`` (0 background, every other value an object) or
        ``classes`` (index of the class; 0 and 255 in binary masks)
    flows : learn the flows (dy, dx) of instances as well, 5 times the unit vector
    boundaries : learn the boundaries of instances as well, so that those that touch can be told apart
    channels : names of the channels that members see
    folds : number of members; each is validated on its own share of the images. 1 uses one share of five for validation
    steps : per member, in both cycles
    frozen_share : of the steps, with the encoder frozen; None takes a fifth if the encoder is pretrained, else none
    batch, patch : patches per step, and their edge in pixels, of volumes also one for each of z, y, x
    learning_rate : the largest of the cycle; ``find`` searches it
    validate_every : number of steps
    keep : the weights that were best on the validation images, or the last
    weights_dtype : in which the member is written
    pixel_size_um, normalisation, tile : as in ``ensemble.yaml``
    """

    axes: Axes = "yx"
    architecture: str = "Unet"
    encoder: str | None = "resnet18"
    options: dict[str, Any] = Field(default={})
    imagenet: bool = True
    start: SmpMember | None = None
    classes: list[Annotated[str, Field(min_length=1)]] = Field(default=["background", "object"], min_length=2)
    colors: list[str] = Field(default=[])
    labels: Literal["instances", "classes"] = "instances"
    flows: bool = False
    boundaries: bool = False
    channels: list[str] = Field(default=["0"], min_length=1)
    folds: int = Field(default=5, ge=1, le=50)
    steps: int = Field(default=2000, ge=4)
    frozen_share: float | None = Field(default=None, ge=0, lt=1)
    batch: int = Field(default=8, ge=2)
    patch: Annotated[_Edge, Field(le=2048)] | _Edges = 256
    learning_rate: Annotated[float, Field(gt=0)] | Literal["find"] = 1e-3
    weight_decay: float = Field(default=1e-2, ge=0)
    loss: LossName = "ce_dice"
    augment: Augment = Augment()
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = Field(default=0, ge=0)
    validate_every: int = Field(default=200, ge=1)
    keep: Literal["best", "last"] = "best"
    weights_dtype: Literal["float32", "float16"] = "float32"
    pixel_size_um: PixelSize | tuple[PixelSize, PixelSize, PixelSize] | None = None
    normalisation: Normalisation = Percentile(low=1.0, high=99.8)
    tile: _Edge | _Edges = 256

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, content: Any) -> Any:
        """Fill in the defaults of volumes."""
        if not isinstance(content, dict) or content.get("axes") != "zyx":
            return content
        content = _VOLUMES | content
        return {"tile": content["patch"]} | content

    @model_validator(mode="after")
    def _fit(self) -> Self:
        """Check that classes, labels, flows and colours fit together."""
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: two classes have the same name")
        if self.labels == "instances" and len(self.classes) != 2:
            raise ValueError("classes: instances are of one class; name the background and it, or use labels: classes")
        if self.flows and self.labels != "instances":
            raise ValueError("flows: they come from instances; use labels: instances, or leave flows out")
        if self.boundaries and self.labels != "instances":
            raise ValueError("boundaries: they are those of instances; use labels: instances, or leave boundaries out")
        if self.colors and len(self.colors) != len(self.classes):
            raise ValueError("colors: give one per class, the background's first")
        return self

    @model_validator(mode="after")
    def _of_axes(self) -> Self:
        """Check that the settings go together with the axes."""
        if reason := next(self._refused_of_volumes() if self.axes == "zyx" else self._refused_of_planes(), ""):
            raise ValueError(reason)
        return self

    def _refused_of_planes(self) -> Iterator[str]:
        """Yield why settings do not go together with planes."""
        for name in ("patch", "tile", "pixel_size_um"):
            if isinstance(getattr(self, name), tuple):
                yield f"{name}: give one number for planes, which are square, or use axes: zyx"
        if self.encoder is None:
            yield "encoder: networks of planes need one"

    def _refused_of_volumes(self) -> Iterator[str]:
        """Yield why settings do not go together with volumes."""
        if self.flows:
            yield "flows: they are of planes; learn boundaries of volumes, or leave axes: zyx out"
        if self.start is not None:
            yield "start: only members that see planes are fine-tuned; leave it out, or leave axes: zyx out"
        if self.encoder is not None:
            yield "encoder: networks of volumes have none to choose; leave it out, or leave axes: zyx out"
        if self.imagenet:
            yield "imagenet: there are no such weights of volumes; leave it out, or leave axes: zyx out"
        if self.frozen_share is not None:
            yield "frozen_share: networks of volumes begin with random weights; leave it out, or leave axes: zyx out"
        for name in ("clahe", "elastic"):
            if getattr(self.augment, name):
                yield f"{name}: it varies planes; leave it out, or leave axes: zyx out"
        if self.architecture not in UNETS:
            yield f"architecture: there is no {self.architecture} of volumes; give {' or '.join(UNETS)}"
        _, y, x = self.pixel_sizes
        if max(y, x) > _SQUARE * min(y, x):
            yield "pixel_size_um: patches are rotated in the plane, so that y and x need equal sizes"
        try:
            strides = self.unet.stride
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in first["loc"])
            yield f"options: {where}{reason_of(first['msg'])}"
            return
        for name in ("patch", "tile"):
            edges = of_each(getattr(self, name), 3)
            if any(edge % stride for edge, stride in zip(edges, strides, strict=True)):
                yield f"{name}: give multiples of {shown_size(strides)} for this network, not {shown_size(edges)}"

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Pixels of a patch on each axis."""
        return of_each(self.patch, len(self.axes))

    @property
    def pixel_sizes(self) -> tuple[float, ...]:
        """Micrometres of a pixel on each axis; 1 if they are not known."""
        return of_each(self.pixel_size_um or 1.0, len(self.axes))

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels on each axis of which the input of a member is a multiple."""
        return self.unet.stride if self.axes == "zyx" else (STRIDE, STRIDE)

    @property
    def unet(self) -> UnetDesign:
        """Design of the members of volumes; raise ValidationError if the options are none of theirs."""
        features = self.options.get("features")
        stages = len(features) if isinstance(features, list) else USUAL_STAGES
        usual = usual_design(self.patch_shape, self.pixel_sizes, self.architecture, stages)
        return UnetDesign.model_validate(usual.model_dump() | self.options)

    @property
    def design(self) -> tuple[str, str, dict[str, Any]]:
        """Architecture, encoder and options of the members of planes."""
        source = self.start or self
        assert source.encoder is not None
        return source.architecture, source.encoder, source.options

    @property
    def outputs(self) -> int:
        """Number of channels of a member's last layer: classes, then flows, then boundaries."""
        return len(self.classes) + 2 * self.flows + self.boundaries

    @property
    def instances(self) -> bool:
        """Whether members tell objects apart."""
        return self.flows or self.boundaries

    @property
    def class_colors(self) -> list[str]:
        """Colour per class, background first."""
        colors = [COLORS[(index - 1) % len(COLORS)] for index in range(1, len(self.classes))]
        return self.colors or ["#000000", *colors]

    def fingerprint(self) -> str:
        """Return a hash that differs if a resumed fold would end with another result."""
        text = json.dumps(self.model_dump(mode="json", exclude={"folds", "tile", "colors"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
