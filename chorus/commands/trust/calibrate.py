"""``chorus calibrate``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from chorus.console.options import Json, RequestOptions, with_options


@with_options(RequestOptions)
def calibrate(
    options: RequestOptions,
    truth: Annotated[
        str | None, typer.Option(help="Folder of TIFF, PNG or OME-Zarr labels named as the images.")
    ] = None,
    truth_label: Annotated[
        str | None, typer.Option(help="Name of the label image inside each source OME-Zarr (of TRUTH, where given).")
    ] = None,
    tau: Annotated[float, typer.Option(help="Dice that you ask for.")] = 0.8,
    alpha: Annotated[
        float, typer.Option(help="Share of images whose Dice may be below the bound that is given.")
    ] = 0.1,
    as_json: Json = False,
) -> None:
    """Measure an ensemble on images with a ground truth, and store that with the ensemble for `chorus flag`.

    The images must represent those to come, and no member may be trained on them; 10 is the minimum, 50 are better.
    Predicts and evaluates into OUT (see `chorus predict` and `chorus evaluate`; the same command resumes an
    interrupted run) and writes `reference.json` and `reference.npz` beside `ensemble.yaml`. Exit code 0: all done, 1:
    finished with failed images, 2: refused, 3: interrupted, resumable.

    **Examples**

    `chorus calibrate reference/images --ensemble nuclei/ --truth reference/labels --out calibration/`

    `chorus calibrate plate.ome.zarr -e nuclei/ --truth-label nuclei -o calibration/ --tau 0.9`
    """
    from chorus.cluster.commands.calibrate import CalibrateRequest, calibrate_ensemble
    from chorus.console.progress import ConsoleReporter

    err = Console(stderr=True)
    request = CalibrateRequest(run=options.request(), truth=truth, truth_label=truth_label, tau=tau, alpha=alpha)
    outcome = calibrate_ensemble(request, ConsoleReporter(err))
    reference, url = outcome.reference, outcome.url
    lines = [f"  failed: {name}: {message}" for name, message in outcome.failures.items()]
    if reference is None:
        lines.append(f"cut short: {outcome.message}")
    else:
        guarantee = f"expected Dice is {reference.bound.alpha:.0%} of the time below its bound at most"
        lines += [f"known    from {reference.images} reference images; {guarantee}", f"written  {url}"]
        lines += [f"note     {note}" for note in reference.notes]
        lines.append("next     chorus flag RESULTS --ensemble ...")
    if as_json:
        known = {} if reference is None else {"images": reference.images, "notes": reference.notes}
        print(json.dumps({"out": outcome.out, "state": outcome.state, "reference": url} | known))
    for line in lines:
        err.print(line, highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(outcome.exit_code)
