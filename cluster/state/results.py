"""The results of a run of ``chorus predict``, for the commands that use them."""

from __future__ import annotations

from typing import Any

from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import PLAN
from chorus.cluster.state.run_record import read_run
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage


def finished_run(out: str) -> dict[str, Any]:
    """Return ``run.json`` of a run; raise RefusedError if `out` holds none of ``chorus predict``."""
    run = read_run(out)
    if "ensemble" not in run:
        raise RefusedError(f"{out}: holds no predictions, it is of `chorus {run.get('command')}`; give those of a run")
    return run


def planned_images(out: str) -> ImageTable:
    """Return the images of a run that could be planned; raise RefusedError if there is no plan."""
    url = storage.join(out, *PLAN)
    try:
        return ImageTable.read(url)
    except OSError as error:
        raise RefusedError(f"{out}: no plan of a run ({storage.explain(error, url)}); run `chorus predict`") from error
