"""Members one after the other, or all in one call: weights stacked, `torch.func.vmap` makes grouped convolutions of it.

Prints samples a second (a tile, an augmentation and a member each) both ways, and by how much answers differ. Chorus
calls members one after the other; this shows what the other way would give on a device.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.func import functional_call, stack_module_state, vmap

from benchmarks.gpu import rate
from benchmarks.made import write_ensemble
from benchmarks.records import keep
from chorus.pipeline.backends.choice import difference
from chorus.pipeline.core.device import DeviceChoice
from chorus.pipeline.core.devices import chosen, device_of
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.inference.members import AUTOCAST
from chorus.pipeline.inference.posterior_builder import Precision
from chorus.pipeline.members.contract import ModuleMember

console = Console()


def main(
    device: Annotated[DeviceChoice, typer.Option(help="What to measure.")] = "cpu",
    tile: Annotated[int, typer.Option(help="Edge in pixels.")] = 256,
    members: Annotated[int, typer.Option(help="Of the ensemble.")] = 5,
    encoder: Annotated[str, typer.Option(help="Of the U-Nets.")] = "resnet18",
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="Arithmetic within the members.")] = "fp32",
    seconds: Annotated[float, typer.Option(help="That each is called for.")] = 10.0,
    results: Annotated[Path, typer.Option(help="Folder for the JSON.")] = Path("benchmarks/results"),
) -> None:
    """Compare both ways.

    Example: `python benchmarks/fused.py --tile 512 --precision bf16`
    """
    found = device_of(chosen(device))
    found.be_repeatable()
    where = found.torch_device
    with tempfile.TemporaryDirectory(prefix="chorus-fused-") as folder:
        ensemble = read_ensemble(str(write_ensemble(Path(folder) / "ensemble", members, tile, encoder)))
        loaded = [ensemble.load_member(index, where, tile) for index in range(members)]
        modules = [member.module for member in loaded if isinstance(member, ModuleMember)]
    rows = [measured(modules, samples, tile, precision, where, seconds) for samples in (4, 16)]
    table = Table("samples a call", "one by one /s", "fused /s", "fused / one by one", "difference")
    for row in rows:
        table.add_row(
            str(row["samples"]), f"{row['apart']:.2f}", f"{row['fused']:.2f}", f"{row['ratio']:.2f}",
            f"{row['difference']:.1e}",
        )  # fmt: skip
    console.print(table)
    keep(results, "-fused", [row | {"encoder": encoder, "members": members} for row in rows])


def measured(
    modules: Sequence[torch.nn.Module],
    samples: int,
    tile: int,
    precision: Precision,
    device: torch.device,
    seconds: float,
) -> dict[str, Any]:
    """Both ways with so many samples a call."""
    tiles = torch.randn(samples, 1, tile, tile, device=device).contiguous(memory_format=torch.channels_last)
    dtype, fused = AUTOCAST.get(precision), as_one(modules)

    def calling(call: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def told() -> torch.Tensor:
            with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                return call(tiles)

        return told

    apart = calling(lambda given: torch.stack([module(given) for module in modules]))
    together = calling(fused)
    found = [len(modules) * samples * rate(call, device, seconds=seconds) for call in (apart, together)]
    return {
        "samples": samples, "tile": tile, "precision": precision, "apart": found[0], "fused": found[1],
        "ratio": found[1] / found[0], "difference": difference(together(), apart()),
    }  # fmt: skip


def as_one(modules: Sequence[torch.nn.Module]) -> Callable[[torch.Tensor], torch.Tensor]:
    """All networks in one call: (members, samples, outputs, y, x)."""
    parameters, buffers = stack_module_state(list(modules))
    shape = copy.deepcopy(modules[0]).to("meta")

    def one(weights: Any, state: Any, tiles: torch.Tensor) -> Any:
        return functional_call(shape, (weights, state), (tiles,))

    mapped = vmap(one, in_dims=(0, 0, None))
    return lambda tiles: mapped(parameters, buffers, tiles)


if __name__ == "__main__":
    typer.run(main)
