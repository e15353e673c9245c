"""A run of ``chorus predict``, opened: its tables, and its images by name."""

from __future__ import annotations

import difflib
import io
from functools import cached_property
from html import escape

import pandas as pd

from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.results.image_results import ImageResults, labels_place
from chorus.cluster.state.results import finished_run, planned_images
from chorus.cluster.state.scores import read_scores
from chorus.pipeline.core.run_document import PredictSummary
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.inside import inside
from chorus.pipeline.io.parquet_errors import parquet_errors
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.report.documents import classes_of
from chorus.pipeline.scores.flag_registry import with_current_flags
from chorus.pipeline.scores.ranking import rank

_COLUMNS = ("rank", "name", "expected_dice", "flags", "uncertainty", "epistemic", "pairwise_dice")
_ROWS = 5


class RunResults:
    """The results of a run in `out`.

    Tables are read when they are first asked for, arrays of images when they are used.

    Parameters
    ----------
    out : folder or URL of the results of `chorus predict`

    Raises
    ------
    RefusedError
        There are none.

    Examples
    --------
    >>> results = chorus.open_results("results")
    >>> results.rank().head()
    >>> results.image("plate.ome.zarr/A/01/0").uncertainty[:100, :100].compute()
    """

    def __init__(self, out: str) -> None:
        self.out = storage.normalise(str(out))
        self._run = finished_run(self.out)

    @property
    def state(self) -> str:
        """How the run ended: ``complete``, ``failures`` (some images failed), ``interrupted`` or ``running``."""
        return self._run.outcome

    @property
    def summary(self) -> PredictSummary:
        """Counts and times, as `run.json` has them."""
        return self._run.summary or PredictSummary()

    @cached_property
    def scores(self) -> pd.DataFrame:
        """A row per image: `scores.parquet`."""
        return read_scores(self.out)

    @cached_property
    def objects(self) -> pd.DataFrame | None:
        """A row per object: `objects.parquet`; None where none were made."""
        return self._table("objects.parquet", "chorus objects")

    @cached_property
    def flags(self) -> pd.DataFrame | None:
        """What each image is judged to be, the riskiest first; None without a reference set, see `unjudged`.

        The columns are those of `flags.parquet`: ``expected_dice``, ``dice_bound``, ``risk``, ``p_value``, ``flags``,
        ``reasons`` and others.
        """
        table = self._table("flags.parquet", "chorus flag")
        return None if table is None else with_current_flags(table)

    @property
    def unjudged(self) -> str | None:
        """Why the images have no flags; None if they have."""
        return None if self.flags is not None else self._run.unjudged or "run `chorus flag` to judge the images"

    def _table(self, name: str, command: str) -> pd.DataFrame | None:
        url = storage.join(self.out, name)
        with storage_errors(url):
            if not storage.exists(url):
                return None
            data = storage.read_bytes(url)
        with parquet_errors(url, f"run `{command}` again"):
            return pd.read_parquet(io.BytesIO(data))

    def rank(self, by: str | None = None) -> pd.DataFrame:
        """Rank images by a score, the worst first; those without it (no foreground, failed) are left out.

        Parameters
        ----------
        by : a column of numbers of `scores`; or ``risk``, as `flags` have it, with their columns. By default risk where
            there are flags, else uncertainty

        Raises
        ------
        RefusedError
            There is no such score.
        """
        if by is None:
            by = "uncertainty" if self.flags is None else "risk"
        if by != "risk" or self.flags is None:
            return rank(self.scores, by).ranked
        judged = self.flags[self.flags["rank"].notna()].drop(columns="status")
        return judged.merge(self.scores, on="name", how="inner", validate="one_to_one")

    @property
    def names(self) -> list[str]:
        """Return the names of all images, in the order of the run."""
        return list(self.scores["name"])

    def image(self, name: str) -> ImageResults:
        """Return the results of one image.

        Parameters
        ----------
        name : as in the column ``name`` of `scores`

        Raises
        ------
        RefusedError
            There is no such image, or it failed.
        """
        rows = self.scores[self.scores["name"] == name]
        if not len(rows):
            near = difflib.get_close_matches(name, self.names, 3, 0.4) or self.names[:3]
            raise RefusedError(f"{self.out}: no image {name!r}; names are such as {', '.join(near)}")
        row = rows.iloc[0]
        if row["status"] == "failed":
            raise RefusedError(f"{self.out}: image {name} has no results: {row['message']}")
        planned = self._planned.image(self._planned.names.index(name))
        url = inside(storage.join(self.out, "images"), name)
        objects = None if self.objects is None else self.objects[self.objects["image"] == name].reset_index(drop=True)
        classes = tuple(classes_of(self._run))
        labels = labels_place(url, planned, in_place=self._run.settings.in_place)
        kept = self._run.settings.save
        return ImageResults(name, url, classes, row, kept, planned, labels, objects)

    @cached_property
    def _planned(self) -> ImageTable:
        return planned_images(self.out)

    def __repr__(self) -> str:
        return f"<RunResults {self._sentence()}>"

    def _sentence(self) -> str:
        summary = self.summary
        states = {"done": summary.done, "empty": summary.empty, "failed": summary.failed}
        counts = [f"{count} {state}" for state, count in states.items() if count]
        if summary.objects is not None:
            counts += [f"{count} objects of {name}" for name, count in summary.objects.counts.items()]
        judged = f"; {self.unjudged}" if self.unjudged else ""
        return f"{self.out}: {self.state}, {summary.images} images ({', '.join(counts)}){judged}"

    def _repr_html_(self) -> str:
        worst = self.rank().head(_ROWS)
        table = worst[[name for name in _COLUMNS if name in worst]].to_html(index=False, float_format="{:.4f}".format)
        order = "the most uncertain" if self.flags is None else "the riskiest"
        return f"<div>{escape(self._sentence())}; {order} first:{table}</div>"
