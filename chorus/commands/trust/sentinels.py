"""``chorus ensemble sentinel``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from chorus.console.options import Json, TrustCode


def sentinel(
    ensemble: Annotated[str, typer.Argument(help="ensemble.yaml, or its folder, or a URL of either.")],
    image: Annotated[str, typer.Argument(help="A small OME-Zarr image, or a field of a plate, with labels inside.")],
    label: Annotated[str, typer.Option(help="Name of the label image inside it.")],
    name: Annotated[str | None, typer.Option(help="Of the sentinel; by default the image's.")] = None,
    tolerance: Annotated[float, typer.Option(help="By how much its Dice may move.")] = 0.01,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Add a labelled image on which every `chorus predict` is tried first; the run stops where its Dice changed.

    The image is predicted with the ensemble's own settings on the CPU, copied beside ensemble.yaml, and listed there
    with its Dice. One of the same name is replaced. The ensemble's hash stays the same; comments in the file are
    lost.

    **Examples**

    `chorus ensemble sentinel nuclei/ embryo.ome.zarr --label nuclei`

    `chorus ensemble sentinel nuclei/ plate.ome.zarr/B/02/0 --label nuclei --name well-b02 --tolerance 0.005`
    """
    from chorus.cluster.commands.sentinels import add_sentinel

    written, made = add_sentinel(ensemble, image, label, name=name, tolerance=tolerance, trust_code=trust_code)
    if as_json:
        print(json.dumps(made.model_dump(mode="json") | {"url": written.url, "hash": written.hash}))
        return
    console, err = Console(), Console(stderr=True)
    poor = [key for key, dice in made.dice.items() if dice < 0.5]
    if poor:
        err.print(
            f"note: Dice of {', '.join(poor)} is below 0.5; an image that is segmented well shows a fault better",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    values = ", ".join(f"{key} {dice:.4f}" for key, dice in made.dice.items())
    for line in (f"sentinel {made.name}: Dice {values}, tolerance {made.tolerance:g}", f"{written.url}"):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
