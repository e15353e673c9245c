"""Metadata of a weight file: enough to write it into an ``ensemble.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field

from chorus.pipeline.core.geometry import Axes, Padding, TileSize
from chorus.pipeline.core.outputs import Activation
from chorus.pipeline.core.provenance import About
from chorus.pipeline.members.contract import MemberEntry
from chorus.pipeline.members.outputs import ClassesOutput, OutputEntry
from chorus.pipeline.preprocessing.normalisation import Normalisation


@dataclass(frozen=True)
class ModelDescription:
    """A trained network as the entry of an ensemble, with what its file tells about ensembles that it fits.

    Attributes
    ----------
    entry : the member, with the sha256 of its weights
    name : for people; the name of the file if it holds no better one
    channels, classes : their names, the background first; made up (``channel-0``, ``class-1``) where only their
        number is known, empty where not even that
    activation : turns its last layer's outputs for the classes into probabilities; None if unknown
    outputs : what it answers with
    axes : of what it sees at once; None where it does not say, as networks of planes mostly do
    tile : edge in pixels, or pixels on each axis of a volume's; None where any will do, or `tile_needed` says which
        the user must choose from
    pixel_size_um : that it was trained on, micrometres per pixel, of volumes one for each axis
    diameter_px : of the objects as it was trained on them, in pixels
    padding : what it was shown beyond the edges of images; None where it does not say
    augmentations : under which its answers are averaged; empty where it does not say
    normalisation : of the ensemble; None where the member brings its own, or where it is not known
    about : where it comes from
    tile_needed : which tiles it takes, where none of them is the obvious one; empty otherwise
    notes : what was assumed, a sentence each
    """

    entry: MemberEntry
    name: str = ""
    channels: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    activation: Activation | None = None
    outputs: tuple[OutputEntry, ...] = (ClassesOutput(),)
    axes: Axes | None = None
    tile: TileSize | None = None
    pixel_size_um: float | tuple[float, ...] | None = None
    diameter_px: float | None = None
    padding: Padding | None = None
    augmentations: tuple[str, ...] = ()
    normalisation: Normalisation | None = None
    about: About = field(default_factory=About)
    tile_needed: str = ""
    notes: tuple[str, ...] = ()
