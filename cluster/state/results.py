"""The results of a run of ``chorus predict``, for the commands that use them."""

from __future__ import annotations

import json

from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import PLAN
from chorus.cluster.planning.resolved_settings import ResolvedSettings
from chorus.cluster.state.documents import PredictRecord
from chorus.cluster.state.output import RUN, read_run
from chorus.pipeline.core.run_document import PredictDocument
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.json_documents import parsed
from chorus.pipeline.io.storage_failures import failure_sentence


def finished_run(out: str) -> PredictRecord:
    """Return ``run.json`` of a run; raise RefusedError if `out` holds none of ``chorus predict``."""
    run = read_run(out, PredictDocument)
    if run.ensemble is None:
        raise RefusedError(f"{out}: holds no predictions, it is of `chorus {run.command}`; give those of a run")
    return read_run(out, PredictRecord)


def settings_of(run: PredictRecord, out: str) -> ResolvedSettings:
    """Return the settings of a run in `out`; raise DamagedError if they are not those of this version of Chorus."""
    data = json.dumps(run.settings.content).encode()
    return parsed(data, ResolvedSettings, f"{storage.join(out, RUN)}: its settings", "run `chorus predict` anew")


def planned_images(out: str) -> ImageTable:
    """Return the images of a run that could be planned; raise RefusedError if there is no plan."""
    url = storage.join(out, *PLAN)
    try:
        return ImageTable.read(url)
    except OSError as error:
        raise RefusedError(f"{out}: no plan of a run ({failure_sentence(error, url)}); run `chorus predict`") from error
