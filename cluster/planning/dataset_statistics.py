"""Statistics over all images of a run: one sketch per image, computed by workers and merged in any order."""

from __future__ import annotations

from chorus.cluster.planning.image_statistics import (
    measures_of,
    stored_statistics,
    survey_image,
    write_dataset_statistics,
)
from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.planning.plan import RunContext
from chorus.cluster.runtime.tasks import TaskResult, Tasks
from chorus.pipeline.ensembles.ensemble import Ensemble
from chorus.pipeline.errors import RefusedError
from chorus.pipeline.preprocessing.preparation import Survey


def survey_dataset(tasks: Tasks, context: RunContext, table: ImageTable, ensemble: Ensemble) -> list[TaskResult]:
    """Measure the statistics of the data set that members need, unless they are known, and store them.

    Returns
    -------
    Failures of the images that could not be read; the statistics exclude them.

    Raises
    ------
    RefusedError
        If the images' types differ: values of different ranges have no common statistics.
    """
    if stored_statistics(context.dataset_url) is not None:
        return []
    types = sorted({image.dtype for image in table.kinds[0]})
    if len(types) > 1:
        raise RefusedError(
            f"{ensemble.url}: a member normalises by statistics of the data set, whose images are "
            f"{' and '.join(types)}; "
            f"run images of one type at a time"
        )
    channels = len(table.image(0).channels)
    first = Survey.begin(measures_of(ensemble, context.settings.tile, "dataset"), channels, types[0])
    failed: dict[int, TaskResult] = {}
    survey = first
    while not survey.complete and len(failed) < len(table):
        known = len(failed)
        total = _one_pass(tasks, context, table, survey, failed)
        # An image that is lost on the second pass must not have been counted on the first.
        survey = total.conclude() if survey is first or len(failed) == known else first
    if survey.complete:
        write_dataset_statistics(context, survey)
    return list(failed.values())


def _one_pass(
    tasks: Tasks, context: RunContext, table: ImageTable, survey: Survey, failed: dict[int, TaskResult]
) -> Survey:
    for index in range(len(table)):
        if index not in failed:
            tasks.submit(index, survey_image, context, table.image(index), survey)
    total = survey
    for result in tasks.results(wait=True):
        if result.error is None:
            total = total.merge(result.value)
        else:
            failed[result.key] = result
    return total
