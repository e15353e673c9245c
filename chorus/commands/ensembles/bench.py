"""``chorus bench engine``: how fast the backends are with an ensemble on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from chorus.console.options import Json, TrustCode, augmentation_names, names
from chorus.pipeline.core.device import DeviceChoice
from chorus.pipeline.core.devices import chosen
from chorus.pipeline.ensembles.builtin import named_ensemble
from chorus.pipeline.errors import RefusedError

if TYPE_CHECKING:
    from chorus.pipeline.backends.choice import Backend
    from chorus.pipeline.backends.measuring import EnsembleTimings

    Measured = tuple[list[EnsembleTimings], tuple[Backend, int]]

err = Console(stderr=True)


def engine(
    ensemble: Annotated[str, typer.Argument(help="Folder or ensemble.yaml, by path or URL, or a built-in name.")],
    tile: Annotated[int | None, typer.Option(help="Edge of a tile in pixels; by default the ensemble's.")] = None,
    augment: Annotated[
        str | None, typer.Option(help="Augmentations, or `flips`, `d4`, `none`; by default the ensemble's.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Tiles per call of a member; by default several are tried.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Out of fp32, bf16 and fp16, comma-separated.")] = "fp32",
    device: Annotated[DeviceChoice, typer.Option(help="Where members run.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Of a CPU; member actors have one each.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each backend and network, after it is set up.")] = 3.0,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Try each backend with an ensemble's networks on this device; `predict --backend auto` then takes the fastest.

    Backends run the networks: plain PyTorch (eager), recorded as CUDA graphs, compiled (inductor), ONNX
    Runtime, OpenVINO. Backends whose output differs from PyTorch's beyond a tolerance are refused. The fastest is
    then tried with more and with fewer tiles a call.

    **Examples**

    `chorus bench engine nuclei-fluo`

    `chorus bench engine tumour/ --precision fp32,bf16 --tile 512`
    """
    import torch

    from chorus.pipeline.backends.choosing import Workload, fastest, measure_and_keep
    from chorus.pipeline.ensembles.ensemble import read_ensemble
    from chorus.pipeline.inference.posterior_builder import Precision

    bundle = read_ensemble(named_ensemble(ensemble), trust_code=trust_code)
    where = chosen(device)
    torch.set_num_threads(threads)
    augmentations = augmentation_names(augment) or bundle.spec.augmentations
    size = tile or bundle.spec.tile_size
    try:
        precisions = TypeAdapter(list[Precision]).validate_python(names(precision))
    except ValidationError as error:
        raise RefusedError(f"--precision {precision}: choose out of fp32, bf16 and fp16") from error
    measured: list[Measured] = []
    with err.status("") as status:
        for one in precisions:
            workload = Workload(size, len(augmentations), one, torch.device(where))

            def begun(tiles: int, network: str, backend: str, one: str = one) -> None:
                status.update(f"{one}: {network} on {backend}, {tiles} tiles a call")

            timings = measure_and_keep(bundle, workload, seconds, batch, begun)
            measured.append((timings, fastest(timings, workload) or ("eager", batch or workload.batch)))
    if as_json:
        rows = [
            timings.model_dump() | {"best": timings.best, "auto": {"backend": backend, "batch": tiles}}
            for measurements, (backend, tiles) in measured
            for timings in measurements
        ]
        print(json.dumps(rows, indent=2))
        return
    _print_timings(measured, len(augmentations))


def _print_timings(measured: list[Measured], augmentations: int) -> None:
    from chorus.pipeline.core.geometry import shown_size

    first = measured[0][0][0]
    out = Console()
    out.print(
        f"{first.device}, {first.threads} threads; calls with so many tiles of {shown_size(first.tile)}, "
        f"{augmentations} augmentations of each; samples a second, and speed-up over PyTorch in fp32 with channels "
        "first",
        highlight=False,
    )
    table = Table("", "tiles", "network", "backend", "a second", "speed-up", "set up", "differs")
    for measurements, auto in measured:
        for measurement in measurements:
            tiles = measurement.samples // augmentations
            for network, plain in zip(measurement.networks, measurement.eager_fp32, strict=True):
                named = f"{network.network} x {len(network.members)}"
                for timing in network.timings:
                    row = [measurement.precision, str(tiles), named, timing.backend]
                    if timing.message:
                        table.add_row(*row, "", "", "", timing.message)
                        continue
                    values = [f"{timing.rate:.1f}", f"{timing.rate / plain:.2f}", f"{timing.setup_seconds:.1f} s"]
                    style = "bold" if (timing.backend, tiles) == auto else None
                    table.add_row(*row, *values, f"{timing.difference:.0e}", style=style)
    out.print(table)
    for measurements, (backend, tiles) in measured:
        what = f"{tiles} tile{'s' if tiles > 1 else ''} a call"
        out.print(f"{measurements[0].precision}: `--backend auto` takes {backend}, {what}", highlight=False)
