"""Create ``ensemble.yaml`` from the metadata of its first member and the user's settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from chorus.pipeline.core.geometry import TileSize
from chorus.pipeline.core.outputs import Activation, Outputs
from chorus.pipeline.ensembles.entries import ClassEntry
from chorus.pipeline.ensembles.spec import FORMAT, EnsembleSpec
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.members.contract import LoadRequest, MemberEntry
from chorus.pipeline.members.described import ModelDescription
from chorus.pipeline.members.outputs import ClassesOutput, FlowsOutput, OutputEntry
from chorus.pipeline.preprocessing.normalisation import MeanStd, Normalisation, Unchanged

DEFAULT_TILE = 512
"""Used if a network accepts any."""


@dataclass(frozen=True)
class Wanted:
    """The user's settings of a new ensemble; fields are those of ``ensemble.yaml``, None takes the member's value."""

    name: str | None = None
    classes: tuple[ClassEntry, ...] | None = None
    channels: tuple[str, ...] | None = None
    pixel_size_um: float | None = None
    diameter_px: float | None = None
    tile: int | None = None
    activation: Activation | None = None
    flows: bool | None = None
    normalisation: Normalisation | None = None
    scale: Literal["dtype"] | None = None

    def options(self) -> list[str]:
        """Return the command-line options that were given."""
        others = {"classes": "class", "channels": "channel", "pixel_size_um": "pixel-size", "diameter_px": "diameter"}
        return [f"--{others.get(f.name, f.name)}" for f in fields(self) if getattr(self, f.name) is not None]


def new_content(name: str, first: ModelDescription, wanted: Wanted) -> dict[str, Any]:
    """Return everything of an ``ensemble.yaml`` but its members.

    Parameters
    ----------
    name : of the ensemble where the user gives none

    Raises
    ------
    RefusedError
        Where neither the member nor the user says what must be known; it names the options.
    """
    classes = wanted.classes or tuple(ClassEntry(name=name) for name in first.classes)
    channels = wanted.channels or tuple(first.channels)
    activation = wanted.activation or first.activation
    outputs = _outputs(first, flows=wanted.flows)
    tile = wanted.tile or first.tile or DEFAULT_TILE
    normalisation = wanted.normalisation or first.normalisation
    if normalisation is None and channels and brings_preparation(first.entry, len(channels), tile):
        normalisation = Unchanged(kind="member")
    needed = {
        "--class (the background first)": classes,
        "--channel": channels,
        "--activation": activation,
        # A network that brings its own does so for a number of channels: they must be known first.
        "--normalisation": normalisation or not channels,
        f"--tile ({first.tile_needed})": wanted.tile or first.tile or not first.tile_needed,
    }
    missing = [option for option, value in needed.items() if not value]
    if missing or normalisation is None:
        raise RefusedError(
            f"{first.entry.weights}: does not say all that a new ensemble must know of its network; add "
            f"{' and '.join(missing)}"
        )
    if isinstance(normalisation, MeanStd) and normalisation.mean and len(normalisation.mean) != len(channels):
        raise RefusedError(
            f"--normalisation: {len(normalisation.mean)} means and stds for {len(channels)} channels "
            f"({_listed(channels)}); give one of each per channel"
        )
    about = first.about.model_dump(mode="json", exclude_defaults=True)
    sizes = {
        "pixel_size_um": _plain(wanted.pixel_size_um or first.pixel_size_um),
        "diameter_px": wanted.diameter_px or first.diameter_px,
    }
    return {
        "format": FORMAT,
        "name": wanted.name or name,
        "classes": [entry.model_dump(mode="json", exclude_none=True) for entry in classes],
        "input": {
            "channels": list(channels),
            **({"axes": first.axes} if first.axes == "zyx" else {}),
            **{key: value for key, value in (sizes | {"scale": wanted.scale}).items() if value is not None},
            **({"padding": first.padding} if first.padding else {}),
            "normalisation": normalisation.model_dump(mode="json", exclude_none=True),
        },
        "activation": activation,
        **({"outputs": [entry.model_dump(mode="json", exclude_none=True) for entry in outputs]} if outputs else {}),
        "tile": _plain(tile),
        **({"augmentations": list(first.augmentations)} if first.augmentations else {}),
        **({"about": about} if about else {}),
    }


def _plain(size: float | tuple[float, ...] | None) -> float | list[float] | None:
    return list(size) if isinstance(size, tuple) else size


def _outputs(first: ModelDescription, *, flows: bool | None) -> tuple[OutputEntry, ...]:
    """Return the outputs of a new ensemble, which are its member's but for flows; none where they are the default."""
    others = tuple(entry for entry in first.outputs if not isinstance(entry, FlowsOutput))
    wanted = others != first.outputs if flows is None else flows
    if not wanted:
        return () if others == (ClassesOutput(),) else others
    return first.outputs if others != first.outputs else (*others, FlowsOutput())


def brings_preparation(entry: MemberEntry, channels: int, tile: TileSize) -> bool:
    """Return whether a member, whose `weights` are a URL, normalises by itself."""
    return entry.preparation(LoadRequest(entry.weights, channels, Outputs(()), tile)) is not None


def check_fit(url: str, spec: EnsembleSpec, described: ModelDescription) -> None:
    """Refuse a member whose metadata name other classes or channels than ensemble `url`."""
    weights = described.entry.weights
    names, theirs = [entry.name for entry in spec.classes], described.classes
    if described.axes not in (None, spec.input.axes):
        raise RefusedError(
            f"{weights}: takes tiles of axes {described.axes}, {url} has {spec.input.axes}; members must agree on the "
            "axes"
        )
    if theirs and len(theirs) != len(names):
        raise RefusedError(
            f"{weights}: gives {len(theirs)} classes ({_listed(theirs)}), {url} has {len(names)} ({_listed(names)}); "
            f"members must agree on the classes"
        )
    if theirs != names and sorted(theirs) == sorted(names):
        raise RefusedError(
            f"{weights}: gives its classes in the order {_listed(theirs)}, {url} has them as {_listed(names)}; members "
            f"must agree on the order"
        )
    channels = spec.input.channels
    if described.channels and len(described.channels) != len(channels):
        raise RefusedError(
            f"{weights}: takes {len(described.channels)} channels ({_listed(described.channels)}), {url} has "
            f"{len(channels)} ({_listed(channels)}); members must agree on the channels"
        )
    given = {entry.role for entry in described.outputs}
    if missing := [entry.role for entry in spec.outputs if theirs and entry.role not in given]:
        raise RefusedError(
            f"{weights}: gives no {' and no '.join(missing)}, which the members of {url} do; put it into another "
            "ensemble"
        )
    own = spec.input.normalisation
    if own.kind == "member" and not brings_preparation(described.entry, len(channels), spec.tile_size):
        raise RefusedError(
            f"{weights}: brings no normalisation of its own, and {url} leaves it to the members; set "
            f"input.normalisation there to what this network was trained with (--normalisation for a new ensemble)"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
