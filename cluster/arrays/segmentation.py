"""The segmentation of an array, for use in a notebook."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chorus.cluster.arrays.judging import Judgement
from chorus.cluster.arrays.segmenting import Computed, Labels
from chorus.cluster.arrays.sources import ArraySource
from chorus.cluster.objects.labels import ObjectLabels
from chorus.cluster.state.scores import scores_frame
from chorus.pipeline.core.fields import ALEATORIC, EPISTEMIC, FIELDS, PROBABILITY, UNCERTAINTY
from chorus.pipeline.core.geometry import Window
from chorus.pipeline.io.outputs.arrays import posterior_axes
from chorus.pipeline.reference.words import IN_SHORT
from chorus.pipeline.report.pictures import data_uri, encode, paint_result, png
from chorus.pipeline.scores.registry import phrase_of

# Longer side of a panel of the picture, in pixels.
_PANEL = 288
_SHOWN = ("uncertainty", "epistemic", "pairwise_dice")


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """The segmentation of an array: labels, objects, posterior, scores, flags.

    Attributes
    ----------
    name : of the array
    objects : label image of each class and a table, see `ObjectLabels`; None where none were made
    judgement : flags, reasons and the Dice to expect; None without a reference set
    """

    name: str
    objects: ObjectLabels | None
    judgement: Judgement | None
    _computed: Computed = field()
    _source: ArraySource = field()
    _shown_channel: int = 0

    @property
    def axes(self) -> str:
        """Axes of `labels` and of the maps of one channel, such as ``yx`` or ``zyx``: those of the array without c."""
        return self._computed.layout.axes

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the values of `labels`, the background first."""
        return tuple(entry.name for entry in self._computed.layout.classes)

    @property
    def labels(self) -> Labels:
        """The most probable class of each pixel, unsigned integers of the axes `axes`."""
        return self._computed.labels

    @property
    def probability(self) -> NDArray[np.floating[Any]]:
        """Mean probability of each class, 0 to 1: axes `axes` with c before z, y and x."""
        return self.maps(PROBABILITY.name)

    @property
    def uncertainty(self) -> NDArray[np.floating[Any]]:
        """Epistemic and aleatoric variance together, 0 to 0.25, of the axes `axes`."""
        return self.maps(UNCERTAINTY.name)

    @property
    def epistemic(self) -> NDArray[np.floating[Any]]:
        """Variance between members and augmentations, 0 to 0.25: what more training data may lower."""
        return self.maps(EPISTEMIC.name)

    @property
    def aleatoric(self) -> NDArray[np.floating[Any]]:
        """Mean of the variance within each sample, 0 to 0.25: what is inherent in the image."""
        return self.maps(ALEATORIC.name)

    def maps(self, kind: str) -> NDArray[np.floating[Any]]:
        """Return a kept map by its name; ``probability`` and ``flows`` have a c axis, others have the axes `axes`.

        Returns
        -------
        float16 or float32, as asked of `segment`; its axes are `axes`, with c before z, y and x for ``probability`` and
        ``flows``

        Raises
        ------
        KeyError
            It was not kept: name it in `save`.
        """
        names = self._computed.layout.channels
        indices = FIELDS[kind].among(names) if kind in FIELDS else []
        if not indices:
            raise KeyError(f"{kind!r} was not kept, of {', '.join(names)}; name it in `save`")
        axis = posterior_axes(self._computed.layout).index("c")
        if not FIELDS[kind].per_channel:
            return np.asarray(self._computed.maps.take(indices[0], axis))
        at = [slice(None)] * self._computed.maps.ndim
        at[axis] = slice(indices[0], indices[-1] + 1)
        return np.asarray(self._computed.maps[tuple(at)])

    @property
    def scores(self) -> pd.Series[Any]:
        """The row of `scores.parquet` in a run: uncertainty, agreement of the members, image quality."""
        return scores_frame([self._computed.record.row]).iloc[0]

    @property
    def flags(self) -> tuple[str, ...] | None:
        """Flags of the image, empty where there are none; None without a reference set."""
        return None if self.judgement is None else self.judgement.flags

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.labels.shape))
        return f"<Segmentation of {self.name}, {self.axes} {shape}: {'; '.join(self._sentences())}>"

    def _sentences(self) -> list[str]:
        row = self._computed.record.row
        sentences = [row.message] if row.message else []
        if row.status == "empty":
            sentences.append(f"no {' and no '.join(self.classes[1:])}")
        sentences += [f"{phrase_of(name)} {score:.3g}" for name in _SHOWN if (score := row.scores[name]) is not None]
        if self.objects is not None:
            sentences += [f"{count} objects of {name}" for name, count in self.objects.counts.items()]
        if self.judgement is not None:
            if self.judgement.expected_dice is not None:
                sentences.append(f"expected Dice {self.judgement.expected_dice:.2f}")
            sentences.append(f"flags: {', '.join(self.judgement.flags) or 'none'}")
        else:
            sentences.append(IN_SHORT)
        return sentences

    def picture(self, longest: int = _PANEL) -> NDArray[np.uint8]:
        """Draw the image with the outlines of its segmentation, beside its uncertainty map.

        Stacks are shown by their first time point and middle plane.

        Parameters
        ----------
        longest : pixels on the longer side of each of the two panels

        Returns
        -------
        (y, x, 3) uint8
        """
        layout = self._computed.layout
        sizes = dict(zip(layout.axes, layout.shape, strict=True))
        t, z = 0, sizes.get("z", 1) // 2
        at = tuple({"t": t, "z": z}[axis] for axis in layout.axes[:-2])
        step = max(1, max(layout.height, layout.width) // (2 * longest))
        whole = Window.of(0, layout.height, 0, layout.width)
        pixels = self._source.channels((self._shown_channel,), t, z, whole, step)[0]
        uncertainty = self.uncertainty[at] if UNCERTAINTY.name in layout.channels else None
        objects = [] if self.objects is None else [labels[at] for labels in self.objects.values()]
        return paint_result(pixels, self.labels[at], objects, uncertainty, layout.classes, longest)

    def _repr_png_(self) -> bytes:
        return png(self.picture())

    def _repr_html_(self) -> str:
        uri = data_uri(encode(self.picture()))
        names = ", ".join(self.classes[1:])
        alt_text = f"Outlines of {names} in {self.name}, beside the map of uncertainty; brighter means more uncertain"
        shape = " x ".join(map(str, self.labels.shape))
        lines = [f"<b>{escape(self.name)}</b> ({self.axes} {shape})", *map(escape, self._sentences())]
        if self.judgement is not None:
            lines += map(escape, self.judgement.reasons)
        return f'<div><img alt="{escape(alt_text)}" src="{uri}"><br>{"; ".join(lines)}</div>'
