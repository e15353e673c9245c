"""Declaration of a score of an image, and of a column of a table that holds one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from chorus.pipeline.scores.image_quality import AppearanceTotal
    from chorus.pipeline.scores.image_scores import RegionTotal

Per = Literal["image", "class", "channel"]
Doubtful = Literal["high", "low", "both", "neither"]
Kind = Literal["intensity", "noise", "sharpness", "object size", "prior", "uncertainty"]
Value = float | None


@dataclass(frozen=True, slots=True)
class Score:
    """A number that describes an image. Tables, ranking, flags, reasons, pages and docs derive from its declaration.

    Attributes
    ----------
    name : column; if there is one per class or channel, it is followed by a colon and the name of that
    label : name for display within a sentence ("pairwise Dice")
    meaning : definition in a sentence without its full stop, in Markdown
    digits : after the decimal point, for display
    doubtful : which values make an image doubtful: ``high``, ``low``, ``both`` ends of the reference set, or
        ``neither``. Ranking begins at the low end if that is the doubtful one, else at the high end
    unit : or the range if there is no unit ("0 to 0.25")
    table : file that has the column: ``scores``, ``flags``, ``evaluation``; ``sigma`` if only ``sigma:<name>`` of
        ``flags.parquet`` exists, the distance of the image from the reference set; ``run`` if it describes how the
        image was processed
    per : whether there is one per image, class or channel
    listed : whether it is in every list of images, not only among the details of one
    believe : for outputs of `chorus flag`, when they can be relied on
    quality : whether expected Dice is estimated from it
    detects : whether it detects images that are out of distribution
    texture : whether it is one of those that detect them together, as texture
    kind : meaning of a difference between a run and the reference set; None if runs are not compared by it
    by_group : whether `chorus shift` tests if it depends on plate, well and metadata
    reference : column of `Reference.frame` that it is comparable to; by default its own in ``scores``
    is_dice : whether it is a Dice against a truth, known or estimated: comparable to tau
    reason : template of a reason for a flag: ``{part}`` is the class or channel, ``{value}`` the number, ``{percent}``
        the same in per cent, ``{complement}`` 1 - value in per cent, ``{sigma}`` the distance from the reference set's
        median, ``{away}`` that and the side; by default label, number and distance
    subject : name of the score with an equivalent reason
    former : name in tables of earlier versions
    from_regions, from_appearance : compute the value from the sums of all regions, and the position among foreground
        classes or channels; they return None if it is undefined
    """

    name: str
    label: str
    meaning: str
    digits: int
    doubtful: Doubtful
    unit: str = ""
    table: Literal["scores", "flags", "evaluation", "sigma", "run"] = "scores"
    per: Per = "image"
    listed: bool = False
    believe: str = ""
    quality: bool = False
    detects: bool = False
    texture: bool = False
    kind: Kind | None = None
    by_group: bool = False
    reference: str = ""
    is_dice: bool = False
    reason: str = ""
    subject: str = ""
    former: str = ""
    from_regions: Callable[[RegionTotal, int], Value] | None = field(default=None, repr=False, compare=False)
    from_appearance: Callable[[AppearanceTotal, int], Value] | None = field(default=None, repr=False, compare=False)

    def column(self, part: str = "") -> Column:
        """Return the column of a class or channel, or of the image."""
        return Column(self, part)

    @property
    def pattern(self) -> str:
        """The column with a placeholder for the class or channel, as in the docs."""
        return self.name if self.per == "image" else f"{self.name}:<{self.per}>"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of numbers: a score, of one class or channel if there is one for each.

    Attributes
    ----------
    part : the class or channel; empty if the score is the image's
    """

    score: Score
    part: str = ""

    @property
    def key(self) -> str:
        """Name of the column."""
        return f"{self.score.name}:{self.part}" if self.part else self.score.name

    @property
    def phrase(self) -> str:
        """Display name within a sentence: ``area fraction of nucleus``."""
        return f"{self.score.label} of {self.part}" if self.part else self.score.label

    @property
    def label(self) -> str:
        """Display name as a heading: ``Area fraction of nucleus``."""
        phrase = self.phrase
        # "p-value" begins with a symbol, which keeps its case.
        return phrase[:1].upper() + phrase[1:] if phrase[1:2].isalpha() else phrase

    @property
    def digits(self) -> int:
        """Digits after the decimal point."""
        return self.score.digits

    @property
    def low_is_bad(self) -> bool:
        """Whether the lowest values are the most doubtful."""
        return self.score.doubtful == "low"

    @property
    def listed(self) -> bool:
        """Whether it is in every list of images."""
        return self.score.listed

    @property
    def in_reference(self) -> str | None:
        """Column of `Reference.frame` with comparable numbers; None if there is none."""
        return self.score.reference or (self.key if self.score.table == "scores" else None)
