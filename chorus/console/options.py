"""Options that commands share, defined once: a dataclass whose fields become a command's parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from chorus.console.numbers import diameter, edges, fractions
from chorus.pipeline.core.device import DeviceChoice, DeviceKind
from chorus.pipeline.core.fields import CHOICES, DEFAULTS
from chorus.pipeline.ensembles.builtin import named_ensemble
from chorus.pipeline.errors import RefusedError, reason_of
from chorus.pipeline.instances.methods import ObjectsMethod

if TYPE_CHECKING:
    from pydantic import BaseModel

    from chorus.cluster.planning.requests import PredictRequest

T = TypeVar("T")
Request = TypeVar("Request", bound="BaseModel")
# Panels of `--help`, below that of the options that people need first.
IMAGES, MEMBERS, WRITTEN = "How images are read", "How members are asked", "What is written"
RUNNING = "Where and how it runs"
Json = Annotated[bool, typer.Option("--json", help="For machines: one JSON document on standard output.")]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Let code that a package or an export brings along run on this machine.")
]
Objects = Annotated[
    ObjectsMethod,
    typer.Option(
        help="Make objects of the results as `chorus objects`, and by which method; auto: by flows, stars, distances, "
        "affinities or boundaries where the ensemble gives what they need (it is kept, too), else none."
    ),
]
ClusterFileOption = Annotated[
    str | None,
    typer.Option("--cluster", help="YAML file of node types and prices; see infra/cost.", rich_help_panel=RUNNING),
]
Executor = Annotated[
    Literal["auto", "ray", "serial"],
    typer.Option(
        help="Ray, or serial in this process; auto takes Ray where work takes longer than its start.",
        rich_help_panel=RUNNING,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(help="A running Ray cluster, e.g. `auto`; by default this machine.", rich_help_panel=RUNNING),
]
Maps = ",".join(DEFAULTS)
MoreMaps = " and ".join(f"`{name}`" for name in CHOICES if name not in DEFAULTS)


@dataclass
class RequestOptions:
    """The options of `chorus predict` and `chorus plan`, the most used first."""

    sources: Annotated[
        list[str], typer.Argument(help="OME-Zarr or files of microscopes, folders, globs, or a .txt of URLs.")
    ]
    ensemble: Annotated[
        str,
        typer.Option(
            "--ensemble", "-e", help="ensemble.yaml, its folder, or the name of one in `chorus ensemble list`."
        ),
    ]
    out: Annotated[str, typer.Option("--out", "-o", help="Results: a folder, or a gs://, s3:// or az:// URL.")]
    channel: Annotated[
        list[str] | None, typer.Option(help="Channel by name or index; once per input channel of the ensemble.")
    ] = None
    diameter: Annotated[
        Any,
        typer.Option(
            parser=diameter,
            metavar="PIXELS|auto",
            help="Of the objects, in pixels of the image; then pixel sizes are not used. auto: estimate each image's.",
        ),
    ] = None
    save: Annotated[str, typer.Option(help=f"Maps to keep, comma-separated ({MoreMaps}, too), or `none`.")] = Maps
    device: Annotated[DeviceChoice, typer.Option(help="Where members run; auto takes GPUs if there are any.")] = "auto"
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results of other settings.")] = False
    level: Annotated[
        int | None, typer.Option(help="Resolution level; by default chosen by pixel size.", rich_help_panel=IMAGES)
    ] = None
    volumes: Annotated[
        bool,
        typer.Option(
            "--volumes",
            help="Stacks as volumes: planes in three directions, their mean, and objects in 3D (an ensemble with "
            "flows).",
            rich_help_panel=IMAGES,
        ),
    ] = False
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="A missing chunk is an error, not fill value; ome-zarr reads results back.",
            rich_help_panel=IMAGES,
        ),
    ] = False
    tile: Annotated[
        Any,
        typer.Option(
            help="Edge of a tile in pixels, of volumes also z,y,x; by default the ensemble's.",
            parser=edges,
            metavar="<int>",
            rich_help_panel=MEMBERS,
        ),
    ] = None
    overlap: Annotated[
        Any,
        typer.Option(
            help="Overlap of tiles, 0 to 1, of volumes also z,y,x; by default the ensemble's.",
            parser=fractions,
            metavar="<float>",
            rich_help_panel=MEMBERS,
        ),
    ] = None
    augment: Annotated[
        str | None,
        typer.Option(
            help="Augmentations, or `flips`, `d4`, `none`, of volumes `zflips`; by default the ensemble's.",
            rich_help_panel=MEMBERS,
        ),
    ] = None
    effort: Annotated[
        Literal["full", "adaptive"],
        typer.Option(
            help="All augmentations for every tile, or only where they matter, by the ensemble's bound.",
            rich_help_panel=MEMBERS,
        ),
    ] = "full"
    batch: Annotated[
        int | None, typer.Option(help="Tiles per call of a member; by default by device.", rich_help_panel=MEMBERS)
    ] = None
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"],
        typer.Option(help="Arithmetic within the members.", rich_help_panel=MEMBERS),
    ] = "fp32"
    backend: Annotated[
        Literal["auto", "eager", "cudagraphs", "inductor", "onnxruntime", "openvino"],
        typer.Option(
            help="What carries out the networks; auto takes what `chorus bench engine` found, else eager.",
            rich_help_panel=MEMBERS,
        ),
    ] = "auto"
    threads: Annotated[
        int,
        typer.Option(
            min=1,
            help="Of an actor on a CPU; more than 1 where there are fewer regions than cores.",
            rich_help_panel=MEMBERS,
        ),
    ] = 1
    sentinels: Annotated[
        Literal["check", "warn", "skip"],
        typer.Option(
            help="Where the Dice of an ensemble's sentinels moved: stop, warn, or do not look.",
            rich_help_panel=MEMBERS,
        ),
    ] = "check"
    trust_code: Annotated[
        bool,
        typer.Option(
            "--trust-code",
            help="Let code that a package or an export brings along run on this machine.",
            rich_help_panel=MEMBERS,
        ),
    ] = False
    region: Annotated[
        int | None,
        typer.Option(
            help="Edge of a region, the unit of work and of writing, in pixels; by default 2048, of volumes 256.",
            rich_help_panel=WRITTEN,
        ),
    ] = None
    region_depth: Annotated[
        int | None,
        typer.Option(min=1, help="Planes of a region of volumes; by default 64.", rich_help_panel=WRITTEN),
    ] = None
    chunk: Annotated[
        int | None,
        typer.Option(
            help="Edge of an output chunk in pixels; a region is a multiple of it; by default 512, of volumes 128.",
            rich_help_panel=WRITTEN,
        ),
    ] = None
    chunk_depth: Annotated[
        int | None,
        typer.Option(min=1, help="Planes of a chunk of volumes; by default 32.", rich_help_panel=WRITTEN),
    ] = None
    dtype: Annotated[Literal["float16", "float32"], typer.Option(help="Type of the maps.", rich_help_panel=WRITTEN)] = (
        "float16"
    )
    in_place: Annotated[
        bool,
        typer.Option("--in-place", help="Write labels into the source images instead.", rich_help_panel=WRITTEN),
    ] = False
    executor: Executor = "auto"
    address: Address = None
    actors: Annotated[
        int | None,
        typer.Option(
            help="Member actors; by default what there is room for, and on a cluster more as nodes join.",
            rich_help_panel=RUNNING,
        ),
    ] = None
    placement: Annotated[
        Literal["auto", "replicated", "staged"],
        typer.Option(help="All members in each actor, or a chain of stages.", rich_help_panel=RUNNING),
    ] = "auto"
    stages: Annotated[int, typer.Option(help="Groups of members with --placement staged.", rich_help_panel=RUNNING)] = 2

    def request(self) -> PredictRequest:
        """Return the validated request; raise RefusedError naming the option."""
        from chorus.cluster.planning.requests import PredictRequest

        settings: dict[str, object] = {
            "channel": self.channel or [],
            "level": self.level,
            "diameter": self.diameter,
            "tile": self.tile,
            "overlap": self.overlap,
            "augmentations": augmentation_names(self.augment),
            "effort": self.effort,
            "batch": self.batch,
            "threads": self.threads,
            "precision": self.precision,
            "backend": self.backend,
            "device": device_on(self.device, self.address),
            "region": self.region,
            "chunk": self.chunk,
            "region_depth": self.region_depth,
            "chunk_depth": self.chunk_depth,
            "save": names(self.save),
            "dtype": self.dtype,
            "strict": self.strict,
            "in_place": self.in_place,
            "volumes": "all" if self.volumes else None,
        }
        run = {
            "executor": self.executor,
            "address": self.address,
            "actors": self.actors,
            "placement": None if self.placement == "auto" else self.placement,
            "stages": self.stages,
            "sentinels": self.sentinels,
            "trust_code": self.trust_code,
        }
        ensemble = named_ensemble(self.ensemble)
        content = {"sources": self.sources, "ensemble": ensemble, "out": self.out, "overwrite": self.overwrite}
        return validated(PredictRequest, content | {"settings": settings, "run": run}, "predict")


def validated(request: type[Request], content: Mapping[str, object], command: str) -> Request:
    """Validate the request of a command; raise RefusedError naming the option that is at fault."""
    from pydantic import ValidationError

    try:
        return request.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        # Of fields that take numbers of several forms, the location goes on with the form.
        field = next((str(part) for part in first["loc"] if part not in ("settings", "run")), "").replace("_", "-")
        reason = reason_of(first["msg"])
        option = f"--{field}: " if field else ""
        raise RefusedError(f"{option}{reason}; see `chorus {command} --help`") from error


def with_options(kind: type[T]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of dataclass `kind` as parameters; it receives them as its first argument."""
    hints = get_type_hints(kind, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(kind)  # type: ignore[arg-type]
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

        @wraps(command)
        def wrapper(**given: Any) -> None:
            options = kind(**{parameter.name: given.pop(parameter.name) for parameter in shared})
            command(options, **given)

        keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        wrapper.__signature__ = inspect.Signature([*shared, *keyword])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in [*shared, *keyword]}
        return wrapper

    return decorate


def names(text: str) -> list[str]:
    """Split a comma-separated list; ``none`` is the empty one."""
    return [] if text == "none" else [name.strip() for name in text.split(",") if name.strip()]


def augmentation_names(text: str | None) -> list[str] | None:
    """Parse `--augment`; return None where the ensemble decides."""
    from chorus.pipeline.core.augmentation import D4, FLIPS, VOLUME_FLIPS

    named = {"flips": list(FLIPS), "zflips": list(VOLUME_FLIPS), "d4": list(D4), "none": ["identity"]}
    return None if text is None else named.get(text) or names(text)


def device_on(device: DeviceChoice, address: str | None) -> DeviceKind:
    """Return the device that `--device` means on this machine, or on the cluster at `address`."""
    if device == "auto" and address is not None:
        from chorus.cluster.runtime import session

        return session.start(address, staged=False).device
    return device_here(device)


def device_here(device: DeviceChoice) -> DeviceKind:
    """Return the device that `--device` means on this machine; whether it exists is found out when it is used."""
    from chorus.pipeline.core.devices import best

    return best() if device == "auto" else device
