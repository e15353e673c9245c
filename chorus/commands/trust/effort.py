"""``chorus ensemble effort``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from chorus.console.options import Json, TrustCode
from chorus.pipeline.core.device import DeviceChoice
from chorus.pipeline.core.devices import chosen


def effort(
    ensemble: Annotated[str, typer.Argument(help="ensemble.yaml, or its folder, or a URL of either.")],
    sources: Annotated[
        list[str], typer.Argument(help="Reference images: OME-Zarr images, plates, collections, folders or globs.")
    ],
    changed: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a tile's pixels whose label may change by what is left out.")
    ] = 0.01,
    shift: Annotated[
        float, typer.Option(min=0, max=0.25, help="By how much U of a tile may change; U is 0 to 0.25.")
    ] = 0.005,
    risk: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the tiles that are cut short for which one may be more.")
    ] = 0.05,
    reference: Annotated[str, typer.Option(help="What the images are, for people who read ensemble.yaml.")] = "",
    device: Annotated[DeviceChoice, typer.Option(help="Where members run; auto takes a GPU if there is one.")] = "auto",
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Measure on reference images which tiles need fewer augmentations, for `chorus predict --effort adaptive`.

    Every tile of the images gets full effort, which is compared with the members' predictions from one and from two
    augmentations. The images must represent those to come; no labels are needed. The bound is written into
    ensemble.yaml, for its own tile, overlap and augmentations; the ensemble's hash stays the same, comments in the
    file are lost.

    **Examples**

    `chorus ensemble effort nuclei/ reference/`

    `chorus ensemble effort nuclei/ plate.ome.zarr --changed 0.01 --risk 0.02 --reference "plate 7, untreated wells"`
    """
    from chorus.cluster.commands.effort import add_effort

    console, err = Console(), Console(stderr=True)
    with err.status("reading the ensemble") as status:
        written, bound = add_effort(
            ensemble,
            sources,
            changed=changed,
            shift=shift,
            risk=risk,
            reference=reference,
            device=chosen(device),
            trust_code=trust_code,
            note=lambda text: status.update(f"measuring: {text}"),
        )
    if as_json:
        print(json.dumps(bound.model_dump(mode="json") | {"url": written.url, "hash": written.hash}))
        return
    everything = len(bound.augmentations)
    drawn = enumerate(bound.stopped, 1)
    saved = sum(count * (1 - ways / everything) for ways, count in drawn) / bound.tiles
    shares = ", ".join(f"{share:.2%} after {ways}" for ways, share in enumerate(bound.doubtful, 1))
    lines = (
        f"done early: tiles with at most this share of pixels in doubt: {shares} of {everything} samples a member",
        f"measured on {bound.images} images, {bound.tiles} tiles: {saved:.0%} of the forward passes are left out",
        written.url,
        "next     chorus predict IMAGES --ensemble ... --effort adaptive",
    )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
