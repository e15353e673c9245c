"""``chorus bench engine``: how fast the backends are with an ensemble on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from chorus.options import Json, TrustCode, augmentation_names, device_here, named_ensemble, names
from pipeline.errors import RefusedError

if TYPE_CHECKING:
    from pipeline.backends.measuring import EnsembleTimings

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
err = Console(stderr=True)


@app.callback()
def _bench() -> None:
    """Measure this machine."""


@app.command()
def engine(
    ensemble: Annotated[str, typer.Argument(help="Folder or ensemble.yaml, by path or URL, or a built-in name.")],
    tile: Annotated[int | None, typer.Option(help="Edge of a tile in pixels; by default the ensemble's.")] = None,
    augment: Annotated[
        str | None, typer.Option(help="Augmentations, or `flips`, `d4`, `none`; by default the ensemble's.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Tiles per call of a member; by default by device.")] = None,
    precision: Annotated[str, typer.Option(help="Out of fp32, bf16 and fp16, comma-separated.")] = "fp32",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where members run.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Of a CPU; member actors have one each.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each backend and network, after it is set up.")] = 3.0,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Try each backend with an ensemble's networks on this device; `predict --backend auto` then takes the fastest.

    Backends carry out the networks: PyTorch as it is (eager), compiled (inductor), ONNX Runtime, OpenVINO. Answers that
    are not PyTorch's within a tolerance are refused.

    **Examples**

    `chorus bench engine nuclei-fluo`

    `chorus bench engine tumour/ --precision fp32,bf16 --tile 512`
    """
    import torch

    from pipeline.backends.measuring import Work, measured
    from pipeline.canvas import Precision, tiles_per_call
    from pipeline.ensemble import read_ensemble

    bundle = read_ensemble(named_ensemble(ensemble), trust_code=trust_code)
    where = device_here(device)
    torch.set_num_threads(threads)
    augmentations = augmentation_names(augment) or bundle.spec.augmentations
    edge = tile or bundle.spec.tile
    samples = len(augmentations) * (batch or tiles_per_call(where, edge, len(augmentations)))
    try:
        precisions = TypeAdapter(list[Precision]).validate_python(names(precision))
    except ValidationError as error:
        raise RefusedError(f"--precision {precision}: choose out of fp32, bf16 and fp16") from error
    measurements = []
    with err.status("") as status:
        for one in precisions:
            work = Work(edge, samples, one, torch.device(where))

            def begun(network: str, backend: str, one: str = one) -> None:
                status.update(f"{one}: {network} on {backend}")

            measurements.append(measured(bundle, work, seconds, begun))
    if as_json:
        print(json.dumps([one.model_dump() | {"best": one.best} for one in measurements], indent=2))
        return
    _print_timings(measurements)


def _print_timings(measurements: list[EnsembleTimings]) -> None:
    first = measurements[0]
    out = Console()
    out.print(
        f"{first.device}, {first.threads} threads, tiles of {first.tile}, {first.samples} in a call; speed-up over "
        f"PyTorch in fp32 with channels first",
        highlight=False,
    )
    table = Table("", "network", "backend", "tiles/s", "speed-up", "set up", "difference")
    for measurement in measurements:
        for network, plain in zip(measurement.networks, measurement.eager_fp32, strict=True):
            named = f"{network.network} x {len(network.members)}"
            for timing in network.timings:
                row = [measurement.precision, named, timing.backend]
                if timing.message:
                    table.add_row(*row, "", "", "", timing.message)
                    continue
                values = [f"{timing.rate:.1f}", f"{timing.rate / plain:.2f}", f"{timing.setup_seconds:.1f} s"]
                best = timing.backend == measurement.best
                table.add_row(*row, *values, f"{timing.difference:.0e}", style="bold" if best else None)
    out.print(table)
    for measurement in measurements:
        out.print(f"{measurement.precision}: `--backend auto` takes {measurement.best}", highlight=False)
