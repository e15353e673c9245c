"""What a field is: one statistic of the posterior of a role, and how it is shown.

The fields themselves are declared in `chorus.pipeline.core.fields`.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from chorus.pipeline.core.outputs import Outputs, Role, Symmetry

Statistic = Literal[
    "mean",
    "predictive variance",
    "epistemic variance",
    "aleatoric variance",
    "circular variance",
    "variance",
    "coefficient of variation",
    "count",
]
Colormap = Literal["viridis", "inferno", "diverging"]
Scale = Literal["fixed", "extent", "variance"]


def hues(count: int, first: float) -> tuple[str, ...]:
    """Return colours of as many hues, for channels that no one expects in a certain colour."""
    colors = (colorsys.hsv_to_rgb((first + index / count) % 1, 0.75, 0.95) for index in range(count))
    return tuple("".join(f"{round(255 * part):02X}" for part in color) for color in colors)


@dataclass(frozen=True, slots=True)
class Display:
    """Default display of a field.

    Attributes
    ----------
    colormap : of the review page and the report
    colors : of its channels in viewers that add up channels, ``RRGGBB``; empty if they take those of the classes
    low, high : values at the ends of the colour map, where `scale` is ``fixed``
    scale : ``extent``: between the extremes of the output; ``variance``: from 0 to the largest variance of values
        between them
    """

    colormap: Colormap
    colors: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    scale: Scale = "fixed"

    @property
    def ends(self) -> tuple[float, float]:
        """Values at the ends of the colour map, where they are fixed."""
        return self.low, self.high


@dataclass(frozen=True, slots=True)
class Field:
    """A statistic of the posterior, kept as one or more maps, (channels, y, x) float32 before they are stored.

    Attributes
    ----------
    name : in ``--save``, settings, requests, and of its channel if it has one
    label : name for display
    role : the quantity that it is a statistic of; a run has the field if it has the role
    statistic : which one
    display : default display
    prefix : if not empty, it has a map per channel of its role, called ``<prefix>:<channel>``; else it has one map
    default : whether it is kept by default
    parts : fields that it is the sum of, pixel by pixel; it is neither blended nor resampled itself
    letter : of its mean over an object in names of exported objects; empty if objects have no such mean
    """

    name: str
    label: str
    role: Role
    statistic: Statistic
    display: Display
    prefix: str = ""
    default: bool = False
    parts: tuple[str, ...] = ()
    letter: str = ""

    @property
    def per_channel(self) -> bool:
        """Whether it has a map per channel of its role."""
        return bool(self.prefix)

    @property
    def symmetry(self) -> Symmetry:
        """How its maps change under a flip or a turn: as those of its role, or as a scalar where it has one map."""
        return self.role.symmetry if self.prefix else "scalar"

    def given(self, outputs: Outputs) -> bool:
        """Return whether a run has it."""
        return self.role in outputs

    def channel(self, name: str = "") -> str:
        """Return the name of the map of channel `name` of its role, or of its only map."""
        return f"{self.prefix}:{name}" if self.prefix else self.name

    def channels(self, outputs: Outputs) -> tuple[str, ...]:
        """Return the names of its maps in a run that has it."""
        return tuple(map(self.channel, outputs[self.role].names)) if self.prefix else (self.name,)

    def owns(self, channel: str) -> bool:
        """Return whether a map of this name is one of its own."""
        prefix, colon, _ = channel.partition(":")
        return prefix == (self.prefix or self.name) and self.per_channel == bool(colon)

    def among(self, channels: Iterable[str]) -> list[int]:
        """Return the indices of its own maps among `channels`, names of maps."""
        return [index for index, name in enumerate(channels) if self.owns(name)]

    def channel_label(self, channel: str) -> str:
        """Return a map's name for display."""
        return f"{self.label}: {channel.partition(':')[2]}" if self.prefix else self.label

    def window(self, outputs: Outputs) -> tuple[float, float]:
        """Return the values at the ends of the colour map, in a run that has it."""
        low, high = outputs[self.role].extent
        if self.display.scale == "extent":
            return low, high
        if self.display.scale == "variance":
            return 0.0, (high - low) ** 2 / 4
        return self.display.ends

    def unit(self, outputs: Outputs) -> str:
        """Return the unit of its values in a run that has it; empty for plain numbers."""
        unit = outputs[self.role].unit
        if self.statistic in ("mean", "count") or not unit:
            return unit
        return f"{unit}\N{SUPERSCRIPT TWO}" if self.statistic == "variance" else ""
