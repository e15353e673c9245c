"""The options of ``chorus ensemble add`` that describe a new ensemble, and their syntax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import yaml
from pydantic import ValidationError

from chorus.pipeline.errors import RefusedError, reason_of

if TYPE_CHECKING:
    from chorus.pipeline.ensembles.creation import Wanted
    from chorus.pipeline.ensembles.entries import ClassEntry
    from chorus.pipeline.preprocessing.normalisation import Normalisation

_FORMS = "percentile:1,99.8, mean_std:MEAN/STD, mean_std:image, none or member"


@dataclass
class NewEnsembleOptions:
    """Options of a new ensemble; what is not given is taken from its first member."""

    name: Annotated[str | None, typer.Option(help="Name of the ensemble.")] = None
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME[=#COLOR]", help="A class, the background first; repeated."),
    ] = None
    channel: Annotated[
        list[str] | None, typer.Option(help="Name of an input channel, in the members' order; repeated.")
    ] = None
    pixel_size: Annotated[
        float | None, typer.Option(help="Micrometers of a pixel that the members were trained on.")
    ] = None
    diameter: Annotated[float | None, typer.Option(help="Of the objects, in pixels that they were trained on.")] = None
    tile: Annotated[int | None, typer.Option(help="Edge of a tile in pixels.")] = None
    activation: Annotated[
        Literal["softmax", "sigmoid", "none"] | None,
        typer.Option(help="Turns what the last layer says into probabilities; `none` where they are such already."),
    ] = None
    flows: Annotated[
        bool | None, typer.Option("--flows/--no-flows", help="Members give flows (dy, dx) after the classes.")
    ] = None
    normalisation: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="`percentile:1,99.8` of each image, `mean_std:MEAN/STD` (one value per channel, with commas), "
            "`mean_std:image`, `none`, or `member` where they normalise by themselves.",
        ),
    ] = None
    scale: Annotated[
        Literal["dtype"] | None, typer.Option(help="`dtype` divides integers by their type's maximum first.")
    ] = None

    def wanted(self) -> Wanted:
        """Return the options as the pipeline takes them; raise RefusedError naming the option."""
        from chorus.pipeline.ensembles.creation import Wanted

        return Wanted(
            name=self.name,
            classes=tuple(_class(text) for text in self.classes) if self.classes else None,
            channels=tuple(self.channel) if self.channel else None,
            pixel_size_um=self.pixel_size,
            diameter_px=self.diameter,
            tile=self.tile,
            activation=self.activation,
            flows=self.flows,
            normalisation=None if self.normalisation is None else _normalisation(self.normalisation),
            scale=self.scale,
        )


def member_options(given: list[str]) -> dict[str, Any]:
    """Parse ``key=value`` with values as in YAML; raise RefusedError for another form."""
    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        try:
            if not key or not equals:
                raise ValueError("no key=value")
            options[key.strip()] = yaml.safe_load(value)
        except (ValueError, yaml.YAMLError) as error:
            raise RefusedError(
                f"--option {text}: not of the form key=value with a value as in YAML, e.g. "
                f"decoder_channels=[64,32,16,8,8]; correct it"
            ) from error
    return options


def _class(text: str) -> ClassEntry:
    from chorus.pipeline.ensembles.entries import ClassEntry

    name, _, color = text.partition("=")
    try:
        return ClassEntry(name=name, color=color or None)
    except ValidationError as error:
        raise RefusedError(f"--class {text}: give NAME or NAME=#rrggbb, e.g. nucleus=#4daf4a") from error


def _normalisation(text: str) -> Normalisation:
    from chorus.pipeline.preprocessing.normalisation import MeanStd, Percentile, Unchanged

    kind, _, values = text.partition(":")
    try:
        if text in ("none", "member"):
            return Unchanged.model_validate({"kind": text})
        if text == "mean_std:image":
            return MeanStd(kind="mean_std", per="image")
        if kind == "percentile":
            low, high = _numbers(values)
            return Percentile(kind="percentile", low=low, high=high)
        if kind == "mean_std":
            mean, std = values.split("/")
            return MeanStd(kind="mean_std", mean=_numbers(mean), std=_numbers(std))
        raise ValueError("unknown")
    except ValidationError as error:
        reason = reason_of(error.errors()[0]["msg"])
        raise RefusedError(f"--normalisation {text}: {reason}; give {_FORMS}") from error
    except ValueError as error:
        raise RefusedError(f"--normalisation {text}: not a normalisation; give {_FORMS}") from error


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))
