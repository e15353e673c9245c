"""``chorus serve`` and ``chorus serve token``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from chorus.console.options import TrustCode, device_here
from chorus.pipeline.core.device import DeviceChoice
from chorus.pipeline.ensembles.builtin import named_ensemble
from chorus.pipeline.errors import RefusedError

if TYPE_CHECKING:
    from chorus.serving.contract.settings import ServeSettings

app = typer.Typer(
    invoke_without_command=True, rich_markup_mode="markdown", pretty_exceptions_enable=False, add_completion=False
)
err = Console(stderr=True)


@app.callback()
def serve(
    context: typer.Context,
    ensemble: Annotated[
        list[str] | None,
        typer.Option("--ensemble", "-e", help="An ensemble, or NAME=ENSEMBLE; may be given several times."),
    ] = None,
    results: Annotated[str | None, typer.Option(help="Results of `chorus predict` for the page at /review.")] = None,
    host: Annotated[str, typer.Option(help="Where to listen; off this machine only with --token-file.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where to listen.")] = 8000,
    token_file: Annotated[str | None, typer.Option(help="Hashes of tokens, of `chorus serve token`.")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="URL below which images may be read, e.g. gs://bucket/; none by default.")
    ] = None,
    cors: Annotated[list[str] | None, typer.Option(help="Origin of pages elsewhere that may call.")] = None,
    jobs: Annotated[
        str | None, typer.Option(help="Folder or bucket for large images; by default gone at the end.")
    ] = None,
    reprocess: Annotated[
        list[str] | None, typer.Option(help="gs://, s3:// or az:// URL that /v1/jobs may use; with --address.")
    ] = None,
    device: Annotated[DeviceChoice, typer.Option(help="Where members run.")] = "auto",
    precision: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Arithmetic within the members.")] = "fp32",
    backend: Annotated[
        Literal["auto", "eager", "cudagraphs", "inductor", "onnxruntime", "openvino"],
        typer.Option(help="What carries out the networks, as in `chorus predict`."),
    ] = "auto",
    effort: Annotated[
        Literal["full", "adaptive"], typer.Option(help="All augmentations for every tile, or as far as they matter.")
    ] = "full",
    threads: Annotated[int, typer.Option(min=1, help="Of each replica on a CPU, as in `chorus predict`.")] = 1,
    min_replicas: Annotated[int, typer.Option(min=0, help="Of each ensemble, at the least.")] = 1,
    max_replicas: Annotated[int | None, typer.Option(min=1, help="Of each ensemble, when there is much to do.")] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; by default a local Ray.")] = None,
    trust_code: TrustCode = False,
) -> None:
    """Predict images one by one over HTTP, and serve the page for reviewing a run; ends with Ctrl-C.

    **Examples**

    `chorus serve --ensemble nuclei-fluo`

    `chorus serve -e nuclei=gs://bucket/nuclei/ -e tumour=tumour/ --results results/ --host 0.0.0.0 --token-file t.json`

    `chorus serve token microscope-1 --file t.json`
    """
    if context.invoked_subcommand is not None:
        return
    if not ensemble:
        raise RefusedError("serve: give --ensemble, such as `chorus serve --ensemble nuclei-fluo`")
    from chorus.serving.contract.settings import parse_settings
    from chorus.serving.run import serve as run

    replicas = max_replicas or max(1, min_replicas)
    content: dict[str, Any] = {
        "ensembles": _named(ensemble),
        "host": host,
        "token_file": token_file,
        "results": results,
        "allow": allow or [],
        "cors": cors or [],
        "jobs_url": jobs,
        "reprocess": reprocess or [],
        "device": device_here(device),
        "precision": precision,
        "backend": backend,
        "effort": effort,
        "threads": threads,
        "min_replicas": min_replicas,
        "max_replicas": replicas,
        "trust_code": trust_code,
    }
    run(parse_settings(content), port, address, _announce)


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="Who it is for, such as microscope-1.")],
    file: Annotated[str, typer.Option(help="Where its hash is kept, beside those that are there.")],
    requests_per_minute: Annotated[int, typer.Option(min=1, max=1_000_000, help="That it may ask.")] = 600,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: one JSON document.")] = False,
) -> None:
    """Make a token for a client and print it once: only its hash is stored.

    **Example**

    `chorus serve token microscope-1 --file tokens.json`
    """
    from chorus.serving.web.tokens import add_token

    made = add_token(file, name, requests_per_minute)
    print(json.dumps({"name": name, "token": made}) if as_json else made)


def _named(given: list[str]) -> dict[str, str]:
    from chorus.serving.contract.settings import name_of

    urls: dict[str, str] = {}
    for text in given:
        name, equals, url = text.partition("=")
        url = named_ensemble(url if equals else text)
        name = name if equals else name_of(url)
        if name in urls:
            raise RefusedError(f"--ensemble {text}: there is another one called {name}; give NAME=ENSEMBLE")
        urls[name] = url
    return urls


def _announce(settings: ServeSettings, url: str) -> None:
    err.print(f"answers  {url}/v1/predict with {', '.join(settings.ensembles)}", highlight=False, markup=False)
    if settings.results is not None:
        err.print(f"review   {url}/review/", highlight=False, markup=False)
    if settings.token_file is None:
        err.print("tokens   none: only this machine is answered", highlight=False, markup=False)
