"""Images in the order in which a person should look at them: the most doubtful first."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from chorus.pipeline.errors import RefusedError
from chorus.pipeline.scores.registry import column_of, current_name


@dataclass(frozen=True)
class Ranking:
    """Images by a score, worst first; those without a score stand apart, never at an end of the list.

    Attributes
    ----------
    ranked : with a column ``rank`` (1 is worst) and, where a threshold was given, ``flagged``
    empty : nothing was predicted as foreground, so that there is nothing to doubt
    failed : with the reason in ``message``
    """

    score: str
    ranked: pd.DataFrame
    empty: pd.DataFrame
    failed: pd.DataFrame


def rank(scores: pd.DataFrame, score: str = "uncertainty", above: float | None = None) -> Ranking:
    """Rank the rows of ``scores.parquet`` by `score`; `above` flags those beyond it (below, where low is doubtful).

    The registry says which end is the doubtful one; of columns that hold no score it is the high end.

    Raises
    ------
    RefusedError
        If there is no such score.
    """
    score = current_name(score)
    numeric = [name for name in scores.columns if pd.api.types.is_numeric_dtype(scores[name])]
    if score not in numeric:
        raise RefusedError(f"no score {score!r}; choose out of {', '.join(numeric)}")
    column = column_of(score)
    low_is_bad = column is not None and column.low_is_bad
    done = scores[(scores["status"] == "done") & scores[score].notna()]
    # Names break ties, so that the order is the same in every run.
    ranked = done.sort_values([score, "name"], ascending=[low_is_bad, True]).reset_index(drop=True)
    ranked.insert(0, "rank", range(1, len(ranked) + 1))
    if above is not None:
        ranked["flagged"] = ranked[score] < above if low_is_bad else ranked[score] > above
    failed = scores["status"] == "failed"
    unscored = ~failed & ~scores["name"].isin(ranked["name"])
    return Ranking(score, ranked, scores[unscored].reset_index(drop=True), scores[failed].reset_index(drop=True))
