"""The functions of `chorus` for programs."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from chorus.cluster.arrays.loaded import LoadedEnsemble
    from chorus.cluster.results.run_results import RunResults
    from chorus.pipeline.backends.choice import Backend
    from chorus.pipeline.core.device import DeviceChoice
    from chorus.pipeline.inference.posterior_builder import Precision
    from chorus.pipeline.instances.methods import ObjectsMethod

Place = str | PathLike[str]


def load(
    ensemble: Place,
    *,
    device: DeviceChoice = "auto",
    backend: Backend | Literal["auto"] = "auto",
    precision: Precision = "fp32",
    effort: Literal["full", "adaptive"] = "full",
    augmentations: Sequence[str] | None = None,
    tile: int | None = None,
    overlap: float | None = None,
    threads: int = 1,
    trust_code: bool = False,
) -> LoadedEnsemble:
    """Load an ensemble onto a device of this machine, to segment arrays with it.

    Parameters
    ----------
    ensemble : name of a built-in ensemble (`chorus ensemble list`), or path or URL of `ensemble.yaml` or its folder
    device : ``cpu``, ``cuda``, ``mps`` or ``xpu``; ``auto`` takes the best one available
    backend : runs the networks; ``auto`` takes what `chorus bench engine` found fastest here, else PyTorch
    precision : arithmetic within the members
    effort : ``adaptive`` gives tiles all augmentations only where they matter, by the ensemble's bound
    augmentations, tile, overlap : the ensemble's where None
    threads : of torch on a CPU; more are faster, and may change the last bits as `chorus predict --threads` does
    trust_code : whether code from a member's package may run

    Returns
    -------
    LoadedEnsemble, whose `segment` takes arrays

    Raises
    ------
    ChorusError
        in one sentence: a member is missing, damaged or does not fit, or there is no such device

    Examples
    --------
    >>> ensemble = chorus.load("nuclei-fluo")
    >>> result = ensemble.segment(image, pixel_size=0.65)
    >>> result.labels, result.uncertainty, result.objects["nucleus"], result.objects.table, result.scores
    """
    from chorus.cluster.arrays.loaded import LoadedEnsemble
    from chorus.cluster.planning.settings import ResultSettings
    from chorus.console.options import device_here, validated
    from chorus.pipeline.ensembles.builtin import named_ensemble

    chosen = {
        "device": device_here(device),
        "backend": backend,
        "precision": precision,
        "effort": effort,
        "augmentations": None if augmentations is None else list(augmentations),
        "tile": tile,
        "overlap": overlap,
        "threads": threads,
    }
    settings = validated(ResultSettings, chosen, "predict")
    return LoadedEnsemble.load(named_ensemble(str(ensemble)), settings, trust_code=trust_code)


def predict(
    sources: Place | Sequence[Place],
    ensemble: Place | LoadedEnsemble,
    out: Place,
    *,
    objects: ObjectsMethod = "auto",
    report: bool = True,
    progress: bool = True,
    **options: Any,
) -> RunResults:
    """Segment whole data sets, as `chorus predict` does; the same call again resumes an interrupted run.

    Parameters
    ----------
    sources : OME-Zarr images, plates, collections, folders, globs, or a .txt of URLs
    ensemble : as in `load`, or a loaded ensemble
    out : folder, or a gs://, s3:// or az:// URL, for the results
    objects : how they are made, as ``--objects`` of `chorus predict`, or ``none``; ``auto`` is by flows where there are
        any, else by what other maps allow
    report : whether `report/index.html` is written at the end
    progress : whether a bar is shown
    options : all others of `chorus predict --help` with underscores, such as ``channel=["dna"]``, ``diameter=30``,
        ``save="probability,epistemic"``, ``device="cpu"``, ``address="auto"``, ``overwrite=True``

    Returns
    -------
    RunResults: `scores`, `objects`, `rank`, `image(name)`. Images that failed are in its scores, with the reason.

    Raises
    ------
    ChorusError
        in one sentence: what does not fit, before any work; or that the run was interrupted

    Examples
    --------
    >>> results = chorus.predict("plate.ome.zarr", "nuclei-fluo", "results")
    >>> results.rank().head()
    >>> results.image("plate.ome.zarr/A/01/0").labels.compute()
    """
    from chorus.cluster.arrays.loaded import LoadedEnsemble
    from chorus.cluster.predict import predict as carry_out
    from chorus.cluster.runtime.progress_bar import BarReporter
    from chorus.cluster.runtime.reporting import Silent
    from chorus.console.options import RequestOptions
    from chorus.pipeline.errors import CutShortError, RefusedError
    from chorus.pipeline.report.page import write_report

    places = [sources] if isinstance(sources, str | PathLike) else sources
    url = ensemble.ensemble.url if isinstance(ensemble, LoadedEnsemble) else str(ensemble)
    try:
        wanted = RequestOptions([str(source) for source in places], url, str(out), **options)
    except TypeError as error:
        raise RefusedError(f"{str(error).split(') ', 1)[-1]}; `chorus predict --help` lists all options") from error
    request = wanted.request()
    run = request.run.model_copy(update={"thumbnails": report})
    request = request.model_copy(update={"objects": objects, "run": run})
    of_images, of_objects = (BarReporter(), BarReporter("step")) if progress else (Silent(), Silent())
    outcome = carry_out(request, of_images, of_objects)
    if outcome.state == "interrupted":
        raise CutShortError(outcome.message)
    if report:
        write_report(outcome.out)
    return open_results(outcome.out)


def open_results(out: Place) -> RunResults:
    """Open the results of an earlier run; raise ChorusError where there are none.

    Examples
    --------
    >>> chorus.open_results("results").scores
    """
    from chorus.cluster.results.run_results import RunResults

    return RunResults(str(out))
