"""``chorus models test`` and ``chorus ensemble pack``: BioImage.IO packages tested and written."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from chorus.console.options import Json, TrustCode
from chorus.pipeline.ensembles.builtin import named_ensemble
from chorus.pipeline.errors import RefusedError

if TYPE_CHECKING:
    from chorus.pipeline.bioimageio.comparison import ComparisonOutcome
    from chorus.pipeline.bioimageio.conformance import PackageTest
    from chorus.pipeline.core.provenance import About
    from chorus.pipeline.ensembles.ensemble import Ensemble

out_console = Console()


def run_test(
    package: Annotated[str, typer.Argument(help="A BioImage.IO package: folder, zip, URL, or id of the collection.")],
    format: Annotated[
        Literal["torchscript", "onnx", "pytorch_state_dict"] | None,
        typer.Option(help="Test these weights only; by default all that the package has."),
    ] = None,
    trust_code: TrustCode = False,
    as_json: Json = False,
) -> None:
    """Run a package's own test tensors, as bioimageio.core does and as a member of Chorus.

    Exit code 0: all that can run passed, 1: something failed, 2: the package cannot be opened.

    **Examples**

    `chorus models test nuclei.zip`

    `chorus models test affable-shark --format onnx --json`
    """
    from chorus.pipeline.bioimageio.conformance import check_package

    tested = check_package(package, format, trust_code=trust_code)
    if as_json:
        formats = [asdict(one) | {"status": one.status} for one in tested.formats]
        print(json.dumps(asdict(tested) | {"formats": formats, "passed": tested.passed}))
    else:
        _print_tested(tested)
    if not tested.passed:
        raise typer.Exit(1)


def pack(
    ensemble: Annotated[str, typer.Argument(help="ensemble.yaml, the folder that holds it, or a built-in's name.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder that gets the zip archives.")],
    member: Annotated[list[int] | None, typer.Option(help="Only this member, by index; repeated for several.")] = None,
    whole: Annotated[bool, typer.Option("--whole", help="All members in one network, which averages them.")] = False,
    description: Annotated[str | None, typer.Option(help="In a few words; by default of ensemble.yaml.")] = None,
    licence: Annotated[str | None, typer.Option(help="SPDX identifier, e.g. CC-BY-4.0.")] = None,
    author: Annotated[list[str] | None, typer.Option(help="A name; repeated for several.")] = None,
    cite_text: Annotated[str | None, typer.Option(help="What to cite.")] = None,
    cite_doi: Annotated[str | None, typer.Option(help="Its DOI, e.g. 10.1038/s41592-019-0612-7.")] = None,
    as_json: Json = False,
) -> None:
    """Write an ensemble's members as BioImage.IO packages, and test them.

    A package holds the weights, the ensemble's normalisation, test tensors, and `about` in ensemble.yaml;
    options take precedence over it. Exit code 0: all passed their test, 1: one did not, 2: refused.

    **Examples**

    `chorus ensemble pack nuclei/ --out packages/`

    `chorus ensemble pack nuclei/ --out packages/ --whole --licence CC-BY-4.0 --author "Ada Lovelace"`
    """
    from chorus.pipeline.bioimageio.conformance import check_package
    from chorus.pipeline.bioimageio.export import pack_members, pack_whole
    from chorus.pipeline.ensembles.ensemble import read_ensemble

    if whole and member:
        raise RefusedError("--whole and --member: give one of the two")
    read = read_ensemble(named_ensemble(ensemble))
    about = _about(read, description, licence, author or [], cite_text, cite_doi)
    members = _indices(read, member)
    paths = [pack_whole(read, about, out)] if whole else pack_members(read, about, out, members)
    tested = [check_package(str(path)) for path in paths]
    if as_json:
        print(json.dumps([{"path": one.url, "passed": one.passed} for one in tested]))
    for one in [] if as_json else tested:
        _print_tested(one)
    if not all(one.passed for one in tested):
        raise typer.Exit(1)


def _indices(read: Ensemble, asked: list[int] | None) -> list[int]:
    count = len(read.spec.members)
    wrong = [index for index in asked or [] if not 0 <= index < count]
    if wrong:
        raise RefusedError(f"--member {wrong[0]}: {read.url} has members 0 to {count - 1}; correct it")
    return asked or list(range(count))


def _about(
    read: Ensemble,
    description: str | None,
    licence: str | None,
    authors: list[str],
    cite_text: str | None,
    cite_doi: str | None,
) -> About:
    """Return the ensemble's own description, replaced by the options where they are given."""
    from chorus.pipeline.core.provenance import About

    if (cite_text is None) != (cite_doi is None):
        raise RefusedError("--cite-text and --cite-doi: give both, or neither")
    given = {
        "description": description,
        "licence": licence,
        "authors": [{"name": name} for name in authors],
        "cite": [] if cite_text is None else [{"text": cite_text, "doi": cite_doi}],
    }
    try:
        return About.model_validate(read.spec.about.model_dump() | {k: v for k, v in given.items() if v})
    except ValidationError as error:
        raise RefusedError(f"about: {error.errors()[0]['msg']}; see `chorus ensemble pack --help`") from error


def _print_tested(tested: PackageTest) -> None:
    """Print a table of the weight formats, then why some failed or were skipped."""
    title = f"{tested.name} (BioImage.IO {tested.format_version}): {tested.url}"
    table = Table(title=title, title_justify="left")
    for heading in ("weights", "run by", "", "max diff", "relative", "seconds"):
        table.add_column(heading, no_wrap=True)
    for one in tested.formats:
        table.add_row(one.format, "bioimageio.core", *_cells(one.core))
        table.add_row("", "Chorus", *_cells(one.chorus))
    out_console.print(table)
    for limits in {one.tolerance for one in tested.formats}:
        _print(
            f"allowed: {limits.absolute:g} + {limits.relative:g} of the value, and more in {limits.mismatched:g} of a "
            "million values"
        )
    for one in tested.formats:
        reasons = {"bioimageio.core": one.core.reason, "Chorus": one.chorus.reason}
        if one.core.reason == one.chorus.reason:
            reasons = {"both": one.core.reason}
        for who, reason in reasons.items():
            if reason:
                _print(f"{one.format}, {who}: {reason}")
    for warning in tested.warnings:
        _print(f"warning: {warning}")


def _cells(outcome: ComparisonOutcome) -> tuple[str, str, str, str]:
    color = {"passed": "green", "failed": "red", "skipped": "yellow"}[outcome.status]
    absolute, relative = ("" if value is None else f"{value:.1e}" for value in (outcome.absolute, outcome.relative))
    return f"[{color}]{outcome.status}[/]", absolute, relative, f"{outcome.seconds:.1f}"


def _print(line: str) -> None:
    out_console.print(line, highlight=False, soft_wrap=True, markup=False)
