"""The options of ``chorus train``: a dataclass whose fields become the command's parameters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import ValidationError

from chorus.console.numbers import edges, fractions
from chorus.pipeline.core.device import DeviceChoice
from chorus.pipeline.core.geometry import Axes
from chorus.pipeline.ensembles.builtin import named_ensemble
from chorus.pipeline.errors import RefusedError, reason_of
from chorus.pipeline.training.settings import UNETS, Augment, LossName, TrainSettings

if TYPE_CHECKING:
    from chorus.cluster.training.run import TrainRequest
    from chorus.pipeline.members.kinds.smp import SmpMember

_DEFAULT, _VOLUMES = TrainSettings(), TrainSettings(axes="zyx")
_DATA, _NETWORK, _COURSE = "What is learnt", "Network", "Course of the training"
_AUGMENT, _ABOUT, _RUN = "What is varied from patch to patch", "What is said of the ensemble", "How it is carried out"


@dataclass
class TrainOptions:
    """The options of `chorus train`: `chorus.pipeline.training.settings.TrainSettings`, the data, and how to train."""

    images: Annotated[
        str, typer.Argument(help="TIFF, PNG or JPEG files (folder or glob), or OME-Zarr images, plates, folders.")
    ]
    labels: Annotated[
        str,
        typer.Option("--labels", "-l", help="Label files of the same names; for OME-Zarr the name of the label image."),
    ]
    out: Annotated[
        str, typer.Option("--out", "-o", help="Becomes the ensemble: a folder, or a gs://, s3:// or az:// URL.")
    ]
    axes: Annotated[
        Axes, typer.Option(help="Of what members see: planes (yx) or volumes (zyx).", rich_help_panel=_DATA)
    ] = _DEFAULT.axes
    label_kind: Annotated[
        Literal["instances", "classes"],
        typer.Option(help="Values of labels: an object each, or the index of a class.", rich_help_panel=_DATA),
    ] = _DEFAULT.labels
    class_name: Annotated[
        list[str] | None,
        typer.Option("--class", help="Name of a class, background first, once per class.", rich_help_panel=_DATA),
    ] = None
    color: Annotated[
        list[str] | None, typer.Option(help="Colour (#rrggbb) of a class, once per class.", rich_help_panel=_DATA)
    ] = None
    flows: Annotated[
        bool,
        typer.Option("--flows", help="Learn flows as well, so that objects can be told apart.", rich_help_panel=_DATA),
    ] = _DEFAULT.flows
    boundaries: Annotated[
        bool,
        typer.Option(
            "--boundaries", help="Learn boundaries as well, to tell objects apart by them.", rich_help_panel=_DATA
        ),
    ] = _DEFAULT.boundaries
    channel: Annotated[
        list[str] | None,
        typer.Option(help="Channel by name or index; once per channel that members see.", rich_help_panel=_DATA),
    ] = None
    pixel_size: Annotated[
        Any,
        typer.Option(
            parser=fractions,
            metavar="MICROMETERS",
            help="Of a pixel, of volumes also Z,Y,X; predict scales images to it.",
            rich_help_panel=_DATA,
        ),
    ] = None
    normalisation: Annotated[
        Literal["percentile", "mean_std", "none"],
        typer.Option(help="By each image's percentiles 1 and 99.8, its mean and std, or not.", rich_help_panel=_DATA),
    ] = "percentile"
    test: Annotated[
        str | None, typer.Option(help="Images that nobody trains on, scored at the end.", rich_help_panel=_DATA)
    ] = None
    test_labels: Annotated[str | None, typer.Option(help="Their labels.", rich_help_panel=_DATA)] = None
    hold_out: Annotated[
        float | None,
        typer.Option(help="Share of the images to keep for scoring instead, 0 to 1.", rich_help_panel=_DATA),
    ] = None
    strict: Annotated[
        bool,
        typer.Option("--strict", help="An image without label, or the reverse, is an error.", rich_help_panel=_DATA),
    ] = False
    architecture: Annotated[
        str | None,
        typer.Option(
            help=f"By its name in the smp library, by default {_DEFAULT.architecture}; of volumes "
            f"{' or '.join(UNETS)}.",
            rich_help_panel=_NETWORK,
        ),
    ] = None
    encoder: Annotated[
        str | None,
        typer.Option(
            help=f"By its name in smp, by default {_DEFAULT.encoder}; `tu-...` are timm's.", rich_help_panel=_NETWORK
        ),
    ] = None
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE of the architecture, the value in JSON, e.g. encoder_depth=4.", rich_help_panel=_NETWORK
        ),
    ] = None
    imagenet: Annotated[
        bool | None,
        typer.Option(
            help="Begin with ImageNet weights where they can be reached, as planes do.", rich_help_panel=_NETWORK
        ),
    ] = None
    start: Annotated[
        str | None,
        typer.Option(help="Fine-tune a member: ENSEMBLE, or ENSEMBLE#2 for its third.", rich_help_panel=_NETWORK),
    ] = None
    weights_dtype: Annotated[
        Literal["float32", "float16"], typer.Option(help="Type in which members are written.", rich_help_panel=_NETWORK)
    ] = _DEFAULT.weights_dtype
    tile: Annotated[
        Any,
        typer.Option(
            parser=edges,
            metavar="PIXELS",
            help=f"Edge of a tile when the ensemble predicts, by default {_DEFAULT.tile}; of volumes Z,Y,X, by default "
            "the patch.",
            rich_help_panel=_NETWORK,
        ),
    ] = None
    folds: Annotated[
        int, typer.Option(help="Members; each is validated on its own share.", rich_help_panel=_COURSE)
    ] = _DEFAULT.folds
    steps: Annotated[int, typer.Option(help="Per member.", rich_help_panel=_COURSE)] = _DEFAULT.steps
    frozen_share: Annotated[
        float | None,
        typer.Option(help="Of the steps with the encoder frozen; by default a fifth.", rich_help_panel=_COURSE),
    ] = None
    batch: Annotated[
        int | None,
        typer.Option(
            help=f"Patches per step, by default {_DEFAULT.batch}; of volumes {_VOLUMES.batch}.", rich_help_panel=_COURSE
        ),
    ] = None
    patch: Annotated[
        Any,
        typer.Option(
            parser=edges,
            metavar="PIXELS",
            help=f"Edge of a patch, by default {_DEFAULT.patch}; of volumes Z,Y,X, by default "
            f"{','.join(map(str, _VOLUMES.patch_shape))}.",
            rich_help_panel=_COURSE,
        ),
    ] = None
    learning_rate: Annotated[str, typer.Option(help="Largest of the cycle, or `find`.", rich_help_panel=_COURSE)] = str(
        _DEFAULT.learning_rate
    )
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.", rich_help_panel=_COURSE)] = _DEFAULT.weight_decay
    loss: Annotated[LossName, typer.Option(help="What is made small.", rich_help_panel=_COURSE)] = _DEFAULT.loss
    precision: Annotated[
        Literal["fp32", "bf16"], typer.Option(help="Arithmetic within the network.", rich_help_panel=_COURSE)
    ] = _DEFAULT.precision
    validate_every: Annotated[int, typer.Option(help="Steps.", rich_help_panel=_COURSE)] = _DEFAULT.validate_every
    keep: Annotated[
        Literal["best", "last"], typer.Option(help="Weights by validation, or the last.", rich_help_panel=_COURSE)
    ] = _DEFAULT.keep
    seed: Annotated[int, typer.Option(help="Of all that is random.", rich_help_panel=_COURSE)] = _DEFAULT.seed
    rotation: Annotated[
        float, typer.Option(help="Degrees either way, besides quarter turns.", rich_help_panel=_AUGMENT)
    ] = _DEFAULT.augment.rotation
    scale: Annotated[
        tuple[float, float], typer.Option(help="Smallest and largest magnification.", rich_help_panel=_AUGMENT)
    ] = _DEFAULT.augment.scale
    gamma: Annotated[float, typer.Option(help="Largest factor; 1 for none.", rich_help_panel=_AUGMENT)] = (
        _DEFAULT.augment.gamma
    )
    contrast: Annotated[float, typer.Option(help="Largest factor; 1 for none.", rich_help_panel=_AUGMENT)] = (
        _DEFAULT.augment.contrast
    )
    noise: Annotated[float, typer.Option(help="Largest std, as a share of the range.", rich_help_panel=_AUGMENT)] = (
        _DEFAULT.augment.noise
    )
    clahe: Annotated[
        bool, typer.Option("--clahe", help="Equalise half of the patches locally.", rich_help_panel=_AUGMENT)
    ] = _DEFAULT.augment.clahe
    elastic: Annotated[bool, typer.Option("--elastic", help="Bend half of the patches.", rich_help_panel=_AUGMENT)] = (
        _DEFAULT.augment.elastic
    )
    blur: Annotated[
        float, typer.Option(help="Largest defocus of half of the patches, pixels.", rich_help_panel=_AUGMENT)
    ] = _DEFAULT.augment.blur
    shading: Annotated[
        float, typer.Option(help="Largest share of light missing in half of them.", rich_help_panel=_AUGMENT)
    ] = _DEFAULT.augment.shading
    photons: Annotated[
        float,
        typer.Option(help="Photon noise in half of them: the fewest at the brightest.", rich_help_panel=_AUGMENT),
    ] = _DEFAULT.augment.photons
    offset: Annotated[float, typer.Option(help="Largest shift, a share of the range.", rich_help_panel=_AUGMENT)] = (
        _DEFAULT.augment.offset
    )
    cutout: Annotated[
        float, typer.Option(help="Largest hole in half of them, a share of the edge.", rich_help_panel=_AUGMENT)
    ] = _DEFAULT.augment.cutout
    name: Annotated[str | None, typer.Option(help="By default the folder's.", rich_help_panel=_ABOUT)] = None
    description: Annotated[str, typer.Option(help="In a sentence or two.", rich_help_panel=_ABOUT)] = ""
    intended_use: Annotated[str, typer.Option(help="What it is for.", rich_help_panel=_ABOUT)] = ""
    limits: Annotated[str, typer.Option(help="What it is not for.", rich_help_panel=_ABOUT)] = ""
    licence: Annotated[str | None, typer.Option(help="SPDX identifier of the weights.", rich_help_panel=_ABOUT)] = None
    data_name: Annotated[
        str | None, typer.Option(help="Of the images; by default their folder's.", rich_help_panel=_ABOUT)
    ] = None
    data_url: Annotated[str | None, typer.Option(help="Where they are found.", rich_help_panel=_ABOUT)] = None
    data_licence: Annotated[str | None, typer.Option(help="SPDX identifier of theirs.", rich_help_panel=_ABOUT)] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a training of other settings.", rich_help_panel=_RUN)
    ] = False
    executor: Annotated[
        Literal["ray", "serial"], typer.Option(help="Ray, or this process alone.", rich_help_panel=_RUN)
    ] = "ray"
    address: Annotated[
        str | None,
        typer.Option(help="A running Ray cluster, e.g. `auto`; by default a local Ray.", rich_help_panel=_RUN),
    ] = None
    device: Annotated[DeviceChoice, typer.Option(help="auto takes GPUs if there are any.", rich_help_panel=_RUN)] = (
        "auto"
    )
    workers: Annotated[
        int | None, typer.Option(help="Folds at a time; by default one per device.", rich_help_panel=_RUN)
    ] = None

    def request(self) -> TrainRequest:
        """Return the validated request; raise RefusedError naming the option."""
        from chorus.cluster.training.run import TrainRequest

        data: dict[str, str | None] = {"name": self.data_name or self.images.rstrip("/").rsplit("/", 1)[-1]}
        data |= {"url": self.data_url, "licence": self.data_licence}
        about = {name: getattr(self, name) for name in ("description", "intended_use", "limits", "licence")}
        same: tuple[str, ...] = ("images", "labels", "out", "name", "test_labels", "hold_out", "strict")
        same += ("executor", "address", "device", "workers", "overwrite")
        content = {name: getattr(self, name) for name in same}
        content |= {"test_images": self.test, "about": about | {"data": [data]}, "settings": self._settings()}
        try:
            return TrainRequest.model_validate(content)
        except ValidationError as error:
            raise RefusedError(_sentence(error)) from error

    def _settings(self) -> dict[str, Any]:
        """Return the options under the names of `TrainSettings`; they differ only in `_NAMES`."""
        same: tuple[str, ...] = ("axes", "flows", "boundaries", "folds", "steps", "frozen_share")
        same += ("weight_decay", "loss", "precision", "seed", "validate_every", "keep", "weights_dtype")
        settings = {name: getattr(self, name) for name in same}
        varied: tuple[str, ...] = ("rotation", "scale", "gamma", "contrast", "noise", "clahe", "elastic")
        varied += ("blur", "shading", "photons", "offset", "cutout")
        # Their defaults depend on the axes.
        of_axes = ("architecture", "encoder", "imagenet", "batch", "patch", "tile")
        settings |= {name: value for name in of_axes if (value := getattr(self, name)) is not None}
        normalisations = {
            "percentile": _DEFAULT.normalisation.model_dump(),
            "mean_std": {"kind": "mean_std", "per": "image"},
            "none": {"kind": "none"},
        }
        return settings | {
            "augment": {name: getattr(self, name) for name in varied},
            "options": dict(_option(text) for text in self.option or []),
            "start": None if self.start is None else starting_member(self.start),
            "classes": self.class_name or _DEFAULT.classes,
            "colors": self.color or [],
            "labels": self.label_kind,
            "channels": self.channel or _DEFAULT.channels,
            "learning_rate": "find" if self.learning_rate == "find" else _number(self.learning_rate),
            "pixel_size_um": self.pixel_size,
            "normalisation": normalisations[self.normalisation],
        }


def starting_member(text: str) -> SmpMember:
    """Return the ensemble member to fine-tune, with the full URL of its weights; raise RefusedError for other kinds."""
    from chorus.pipeline.ensembles.ensemble import read_ensemble
    from chorus.pipeline.members.kinds.smp import SmpMember

    url, _, position = text.partition("#")
    ensemble = read_ensemble(named_ensemble(url))
    members = ensemble.spec.members
    if position and not (position.isdecimal() and int(position) < len(members)):
        raise RefusedError(f"--start {text}: there is no member {position}; give a number from 0 to {len(members) - 1}")
    index = int(position or 0)
    member = members[index]
    if not isinstance(member, SmpMember):
        raise RefusedError(
            f"--start {text}: member {index} is of kind {member.kind}, which cannot be trained; give one of kind smp"
        )
    return member.model_copy(update={"weights": ensemble.asked(index).url})


# Options whose names differ from the settings that they fill.
_NAMES = {
    "labels": "label-kind",
    "classes": "class",
    "colors": "color",
    "options": "option",
    "channels": "channel",
    "pixel_size_um": "pixel-size",
    "test_images": "test",
}


def _sentence(error: ValidationError) -> str:
    """Return a sentence that says which option is wrong and why."""
    first = error.errors()[0]
    reason = reason_of(first["msg"]).replace("labels: ", "--label-kind ").replace("axes: ", "--axes ")
    path = [str(part) for part in first["loc"] if part != "augment"]
    in_settings = path[:1] == ["settings"]
    path = path[in_settings:]
    if not path:  # of several at once: the reason begins with the field
        name, _, rest = reason.partition(":")
        known = name in TrainSettings.model_fields or name in Augment.model_fields
        return (
            f"--{_NAMES.get(name, name).replace('_', '-')}:{rest}" if known else f"{reason}; see `chorus train --help`"
        )
    return f"--{_NAMES.get(path[0], path[0]).replace('_', '-')}: {reason}; see `chorus train --help`"


def _option(text: str) -> tuple[str, Any]:
    """Parse ``name=value`` with a value in JSON, or a plain word."""
    name, sign, value = text.partition("=")
    if not sign:
        raise RefusedError(f"--option {text}: give name=value, e.g. decoder_channels=[64,48,32,24,16]")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise RefusedError(f"--learning-rate {text}: give a number such as 0.001, or `find`") from error
