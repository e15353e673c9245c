"""``chorus ensemble``: look at ensembles, check them, make and edit them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from chorus.commands.ensembles import view as ensemble_view
from chorus.commands.ensembles.options import NewEnsembleOptions, member_options
from chorus.console.options import Json, TrustCode, with_options
from chorus.pipeline.ensembles.builtin import named_ensemble

if TYPE_CHECKING:
    from chorus.pipeline.ensembles.editing import Edited
    from chorus.pipeline.ensembles.ensemble import Ensemble
    from chorus.pipeline.ensembles.spec import EnsembleSpec

out_console = Console()
err = Console(stderr=True)

ToRead = Annotated[
    str, typer.Argument(help="ensemble.yaml, the folder that holds it, a URL, or the name of a built-in ensemble.")
]
ToWrite = Annotated[str, typer.Argument(help="ensemble.yaml, or its folder, or a URL of either.")]


def show(
    ensemble: ToRead,
    everything: Annotated[
        bool, typer.Option("--all", help="Every member, where it comes from, and scores of folds, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print an ensemble's description: classes, input, members, use and scores. Nothing is loaded.

    **Examples**

    `chorus ensemble show nuclei/`

    `chorus ensemble show nuclei/ --all`

    `chorus ensemble show s3://bucket/nuclei/ensemble.yaml --json`
    """
    from chorus.pipeline.ensembles.ensemble import read_ensemble

    read = read_ensemble(named_ensemble(ensemble))
    if as_json:
        _print_json(_content(read))
        return
    for part in ensemble_view.view(read, everything=everything):
        out_console.print(part, highlight=False, crop=False)


def check(
    ensemble: ToRead,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Load every member, predict a tile, measure the sentinels, and print the ensemble's description.

    Exit code 2 where something does not fit, or the Dice of a sentinel changed.

    **Examples**

    `chorus ensemble check nuclei/`

    `chorus ensemble check nuclei/ --json`
    """
    from chorus.cluster.commands.sentinels import compare_sentinels
    from chorus.cluster.planning.devices.device_probe import probe_device
    from chorus.cluster.planning.resolved_settings import resolve
    from chorus.cluster.planning.settings import ResultSettings
    from chorus.pipeline.ensembles.ensemble import read_ensemble

    read = read_ensemble(named_ensemble(ensemble), trust_code=trust_code)
    measured = probe_device(read, resolve(ResultSettings(), read))
    sentinels = compare_sentinels(read)
    if as_json:
        _print_json(_content(read) | {"calibration": asdict(measured), "sentinels_found": sentinels})
        return
    classes = ", ".join(entry.name for entry in read.classes)
    _print(f"{read.spec.name}: {_members(read.spec)}, classes {classes}")
    _print(f"hash {read.hash}")
    _print(f"all members load and answer; {measured.seconds_per_tile * 1000:.0f} ms a tile")
    for name, dice in sentinels.items():
        _print(f"sentinel {name}: Dice {', '.join(f'{key} {value:.4f}' for key, value in dice.items())}, as stored")


@with_options(NewEnsembleOptions)
def add(
    options: NewEnsembleOptions,
    ensemble: ToWrite,
    files: Annotated[list[str], typer.Argument(help="Weights, BioImage.IO packages, or folders of them.")],
    kind: Annotated[
        str | None, typer.Option(help="What kind of network it is, such as onnx; by default what the file looks like.")
    ] = None,
    architecture: Annotated[str | None, typer.Option(help="Of a plain state dict, by its name in smp.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Of a plain state dict.")] = None,
    factory: Annotated[
        str | None,
        typer.Option(
            metavar="PACKAGE:FUNCTION",
            help="Of a plain state dict: code of an installed package that builds its network; with --trust-code.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE of the architecture or factory, e.g. `encoder_depth=4`; repeated."),
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Keep the URL or path of the weights instead of copying them.")
    ] = False,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Add trained networks; a new ENSEMBLE is created from the first network's metadata and the options.

    Each is loaded and predicts a tile before anything is written. Weights are copied beside ensemble.yaml. The options
    from --name to --scale are for a new ensemble.

    **Examples**

    `chorus ensemble add cfos/ deepflash2-models/ --channel cFOS --class background --class nucleus=#4daf4a`

    `chorus ensemble add nuclei/ package.zip`

    `chorus ensemble add cells/ cpsam_v2 --link --channel cytoplasm --channel nuclei`

    `chorus ensemble add nuclei/ fold-*.pth --architecture Unet --encoder resnet34 --channel DNA --tile 256
    --class background --class nucleus --activation softmax --normalisation percentile:1,99.8`
    """
    from chorus.pipeline.ensembles import editing as ensemble_editing
    from chorus.pipeline.members.kind import Network

    network = Network(architecture, encoder, member_options(option or []), factory=factory)
    edited = ensemble_editing.add(
        ensemble, files, options.wanted(), kind=kind, network=network, link=link, trust_code=trust_code
    )
    _print_edited(edited, as_json=as_json)


def remove(
    ensemble: ToWrite,
    members: Annotated[list[str], typer.Argument(help="Members by index, or by the name of their weights.")],
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete their weights too, where they lie beside ensemble.yaml.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove members from an ensemble; at least one stays.

    **Examples**

    `chorus ensemble remove nuclei/ 2`

    `chorus ensemble remove nuclei/ fold-3.pth fold-4.pth --delete`
    """
    from chorus.pipeline.ensembles import editing as ensemble_editing

    _print_edited(ensemble_editing.remove(ensemble, members, delete=delete), as_json=as_json)


def schema() -> None:
    """Print the JSON schema of ensemble.yaml, for editors and for programs in other languages.

    **Example**

    `chorus ensemble schema > ensemble.schema.json`
    """
    from chorus.pipeline.ensembles.schema import json_schema

    print(json.dumps(json_schema(), indent=2))


def _print_edited(edited: Edited, *, as_json: bool) -> None:
    changed = {name: list(getattr(edited, name)) for name in ("added", "removed", "notes")}
    if as_json:
        _print_json(_content(edited.ensemble) | changed)
        return
    for note in edited.notes:
        err.print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)
    for what in ("added", "removed"):
        for weights in changed[what]:
            _print(f"{what} {weights}")
    spec = edited.ensemble.spec
    _print(f"{spec.name}: {_members(spec)}, hash {edited.ensemble.hash}")
    _print(edited.ensemble.url)


def _content(ensemble: Ensemble) -> dict[str, Any]:
    return ensemble.spec.model_dump(mode="json") | {"url": ensemble.url, "hash": ensemble.hash}


def _members(spec: EnsembleSpec) -> str:
    count = len(spec.members)
    return f"{count} member" if count == 1 else f"{count} members"


def _print(line: str) -> None:
    out_console.print(line, highlight=False, soft_wrap=True, markup=False)


def _print_json(content: object) -> None:
    print(json.dumps(content))
