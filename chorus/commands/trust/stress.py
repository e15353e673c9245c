"""``chorus stress``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from chorus.console.options import Address, Executor, Json, TrustCode, device_on, names, validated
from chorus.pipeline.core.device import DeviceChoice
from chorus.pipeline.ensembles.builtin import named_ensemble

if TYPE_CHECKING:
    from chorus.cluster.commands.stress import Stressed


def stress(
    images: Annotated[str, typer.Argument(help="Folder or glob of TIFF, PNG or JPEG files, or OME-Zarr.")],
    ensemble: Annotated[
        str,
        typer.Option(
            "--ensemble", "-e", help="ensemble.yaml, its folder, or the name of one in `chorus ensemble list`."
        ),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="Results: a folder, or a gs://, s3:// or az:// URL.")],
    truth: Annotated[str | None, typer.Option(help="Folder of TIFF or PNG labels named as the images.")] = None,
    truth_label: Annotated[
        str | None, typer.Option(help="Name of the label image inside each OME-Zarr, in place of TRUTH.")
    ] = None,
    only: Annotated[
        str,
        typer.Option(
            help="Corruptions, comma-separated: noise, photons, defocus, motion, gain, gamma, illumination, jpeg, "
            "saturation, finer_pixels, coarser_pixels, channels. By default all."
        ),
    ] = "",
    channel: Annotated[
        list[str] | None, typer.Option(help="Channel by name or index; once per input channel of the ensemble.")
    ] = None,
    device: Annotated[DeviceChoice, typer.Option(help="Where members run; auto takes GPUs if there are any.")] = "auto",
    trust_code: TrustCode = False,
    executor: Executor = "auto",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Spoil labelled images in twelve ways at five levels, and see what becomes of Dice, and whether you are warned.

    With a reference set the table has the expected Dice, the share of the images that are flagged, and that of images
    whose Dice is not below its bound. Images should be unlike none of those to come, and no member trained on them.
    Leaves `stress.svg`, `stress.parquet` and `stress.json` in OUT, and the copies with their results, some 60 an image.
    The same command resumes. Exit code 0: all done, 1: finished with failed images, 2: refused, 3: interrupted.

    **Examples**

    `chorus stress images/ --truth masks/ --ensemble nuclei-fluo --out stress/`

    `chorus stress images/ --truth masks/ -e mine/ -o stress/ --only defocus,noise,finer_pixels`
    """
    from chorus.cluster.commands.stress import StressRequest, stress_ensemble
    from chorus.console.progress import ConsoleReporter

    err = Console(stderr=True)
    content = {
        "run": {
            "sources": [images],
            "ensemble": named_ensemble(ensemble),
            "out": out,
            "settings": {"channel": channel or [], "device": device_on(device, address), "save": []},
            "run": {"executor": executor, "address": address, "trust_code": trust_code},
        },
        "truth": truth,
        "truth_label": truth_label,
        "corruptions": names(only) if only else [],
    }
    outcome = stress_ensemble(validated(StressRequest, content, "stress"), ConsoleReporter(err))
    if as_json:
        print(outcome.record.model_dump_json())
    else:
        Console().print(stress_table(outcome))
    for line in _lines(outcome):
        err.print(line, highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(outcome.exit_code)


def stress_table(outcome: Stressed) -> Table:
    """Return a table of the means, a row per corruption and level."""
    from chorus.pipeline.stress.corruptions import CORRUPTIONS

    known = {one.name: one for one in CORRUPTIONS}
    summary = outcome.summary
    shown = [name for name in ("dice", "expected_dice", "flagged", "held", "fallen", "warned") if name in summary]
    words = {"dice": "Dice", "expected_dice": "expected", "held": "bound", "fallen": "fell"}
    table = Table(title=f"means of {int(summary['images'].max())} images", title_justify="left")
    table.add_column("corruption", no_wrap=True)
    table.add_column("", justify="right")
    for name in shown:
        table.add_column(words.get(name, name), justify="right")
    for kind, rows in summary.groupby("corruption", sort=False):
        one = known.get(str(kind))
        label = str(kind) if one is None else one.label
        for place, row in enumerate(rows.to_dict("records")):
            degree = "" if one is None else f"{row['degree']:g}"
            table.add_row("" if place else label, degree, *(_cell(str(key), row[key]) for key in shown))
        table.add_section()
    return table


def _cell(name: str, value: float) -> str:
    if value != value:
        return ""
    if name in ("fallen", "warned"):
        return str(int(value))
    return f"{value:.0%}" if name in ("flagged", "held") else f"{value:.3f}"


def _lines(outcome: Stressed) -> list[str]:
    record = outcome.record
    lines = [f"  failed: {name}: {message}" for name, message in record.failures.items()]
    if record.fallen is None or record.warned is None:
        lines.append(f"note     {record.unjudged}")
    elif record.fallen == 0:
        lines.append("promise  kept: no copy lost more than 0.1 of its Dice")
    else:
        share = record.warned / record.fallen
        kept = "kept" if record.warned >= 0.95 * record.fallen else "not kept, 95 % were asked for"
        lines.append(
            f"promise  {kept}: of {record.fallen} copies that lost more than 0.1 of their Dice {record.warned} "
            f"({share:.0%}) are flagged, or their expected Dice fell as well"
        )
    return [*lines, f"results  {outcome.out}/stress.svg, stress.parquet", f"next     chorus review {outcome.out}/run"]
