"""One image of a run: its arrays, opened lazily, its objects and its picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from chorus.cluster.objects.labels import ObjectLabels
from chorus.cluster.planning.planned_image import PlannedImage
from chorus.pipeline.core.fields import ALEATORIC, EPISTEMIC, FIELDS, PROBABILITY, UNCERTAINTY
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.models import ClassInfo, SourceImage
from chorus.pipeline.io.outputs.arrays import LABEL_NAME
from chorus.pipeline.io.outputs.writer import open_labels
from chorus.pipeline.io.sources.ngff import open_image
from chorus.pipeline.io.sources.reading import open_level
from chorus.pipeline.report.pictures import beside, data_uri, encode, paint_panels, png
from chorus.pipeline.scores.registry import phrase_of

if TYPE_CHECKING:
    import dask.array as da

_PANEL = 288
_SHOWN = ("uncertainty", "epistemic", "pairwise_dice", "expected_dice")


@dataclass(frozen=True, eq=False, repr=False)
class ImageResults:
    """The results of one image, as dask arrays of stored data: ``numpy.asarray(image.labels)`` reads.

    Attributes
    ----------
    name : of the image in the run
    url : of its results, an OME-Zarr image
    classes : of the ensemble, background first
    scores : its row of `scores.parquet`
    kept : names of the maps that were kept
    """

    name: str
    url: str
    classes: tuple[ClassInfo, ...]
    scores: pd.Series[Any]
    kept: tuple[str, ...]
    _planned: PlannedImage
    _labels_url: str
    _table: pd.DataFrame | None

    @property
    def axes(self) -> str:
        """Axes of `labels` and of the maps of one channel: those of the image without c."""
        return self._planned.output_axes

    @cached_property
    def labels(self) -> da.Array:
        """The most probable class of each pixel, of the axes `axes`."""
        return _lazy(open_labels(self._labels_url))

    @property
    def probability(self) -> da.Array:
        """Mean probability of each class, 0 to 1: axes `axes` with c before z, y and x."""
        return self.maps(PROBABILITY.name)

    @property
    def uncertainty(self) -> da.Array:
        """Epistemic and aleatoric variance together, 0 to 0.25."""
        return self.maps(UNCERTAINTY.name)

    @property
    def epistemic(self) -> da.Array:
        """Variance between members and augmentations, 0 to 0.25."""
        return self.maps(EPISTEMIC.name)

    @property
    def aleatoric(self) -> da.Array:
        """Mean of the variance within each sample, 0 to 0.25."""
        return self.maps(ALEATORIC.name)

    def maps(self, kind: str) -> da.Array:
        """Return a kept map by its name; ``probability`` and ``flows`` have a c axis, others have the axes `axes`.

        Returns
        -------
        dask array of floats, of the run's dtype; its axes are `axes`, with c before z, y and x for ``probability`` and
        ``flows``

        Raises
        ------
        KeyError
            The run did not keep it.
        """
        if kind not in self.kept:
            raise KeyError(
                f"{kind!r} was not kept, of {', '.join(self.kept) or 'no maps'}; name it in `save` of the run"
            )
        stored = self._posterior
        indices = FIELDS[kind].among(stored.channels)
        array: da.Array = _lazy(open_level(stored.url, "s0", stored.ngff))
        at: dict[str, int | slice] = {
            "c": slice(indices[0], indices[-1] + 1) if FIELDS[kind].per_channel else indices[0]
        }
        chosen: da.Array = array[tuple(at.get(axis, slice(None)) for axis in stored.axes)]
        return chosen

    @cached_property
    def _posterior(self) -> SourceImage:
        return open_image(self.url, "image", "", self.name)

    @cached_property
    def objects(self) -> ObjectLabels | None:
        """Label image of each class, not yet read, and the table of the image's objects; None where there are none."""
        if self._table is None:
            return None
        names = [entry.name for entry in self.classes[1:]]
        labels = {name: _lazy(open_labels(self.url, 0, name)) for name in names if name != LABEL_NAME}
        return ObjectLabels(labels, self._table)

    def __repr__(self) -> str:
        return f"<ImageResults {'; '.join(self._sentences())}>"

    def _sentences(self) -> list[str]:
        shape = "x".join(map(str, self._planned.output_shape))
        row = self.scores.to_dict()
        sentences = [f"{self.name}, {self.axes} {shape}", *([row["message"]] if row["message"] else [])]
        known = [score for score in _SHOWN if score in row and not pd.isna(row[score])]
        sentences += [f"{phrase_of(score)} {row[score]:.3g}" for score in known]
        if self.objects is not None:
            sentences += [f"{count} objects of {name}" for name, count in self.objects.counts.items()]
        return sentences

    def picture(self, longest: int = _PANEL) -> NDArray[np.uint8]:
        """Draw the image with the outlines of its segmentation, beside its uncertainty map, from coarse levels.

        Parameters
        ----------
        longest : pixels on the longer side of each of the two panels

        Returns
        -------
        (y, x, 3) uint8

        Raises
        ------
        RefusedError
            The image or its results cannot be read any more.
        """
        planned = self._planned
        panels = paint_panels(planned.url, self.url, self._labels_url, self.classes, planned.channels[0], longest)
        _, outlines, uncertainty = panels.pixels
        if outlines is None:
            raise RefusedError(f"{self.name}: no picture; {'; '.join(panels.notes)}")
        if uncertainty is None or uncertainty.shape != outlines.shape:
            return outlines
        return beside(outlines, uncertainty)

    def _repr_png_(self) -> bytes:
        return png(self.picture())

    def _repr_html_(self) -> str:
        alt_text = f"Outlines in {self.name}, beside the map of uncertainty; brighter means more uncertain"
        title, *others = map(escape, self._sentences())
        try:
            drawn = f'<img alt="{escape(alt_text)}" src="{data_uri(encode(self.picture()))}"><br>'
        except RefusedError as error:
            drawn, others = "", [*others, escape(str(error))]
        return f"<div>{drawn}<b>{title}</b>; {'; '.join(others)}</div>"


def _lazy(array: zarr.Array[Any]) -> da.Array:
    import dask.array

    lazy: da.Array = dask.array.from_zarr(array)  # type: ignore[no-untyped-call]
    return lazy


def labels_place(url: str, planned: PlannedImage, *, in_place: bool) -> str:
    """Return the URL of the group that has the labels of an image: its results, or the source itself."""
    return storage.normalise(planned.url) if in_place else url
