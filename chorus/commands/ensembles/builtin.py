"""``chorus ensemble list``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from chorus.console.options import Json
from chorus.pipeline.ensembles.builtin import builtin_ensembles


def list_builtin(as_json: Json = False) -> None:
    """List the built-in ensembles; each is used by its name, as in `chorus predict --ensemble NAME`.

    `chorus ensemble show NAME` shows more of one; `--json` has all scores.

    **Example**

    `chorus ensemble list`
    """
    known = builtin_ensembles()
    if as_json:
        from chorus.pipeline.ensembles.ensemble import read_ensemble

        keys = {"description", "licence", "scores"}
        read = {name: read_ensemble(url) for name, url in known.items()}
        content = [
            {"name": name, "hash": one.hash, **one.spec.about.model_dump(mode="json", include=keys)}
            for name, one in read.items()
        ]
        print(json.dumps(content))
        return
    Console().print(builtin_table(known), highlight=False)


def builtin_table(known: Mapping[str, str]) -> Table:
    """Return a table of the ensembles that are part of Chorus, by name and path."""
    import yaml

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("name", "members", "description", "scores"):
        table.add_column(Text(name), no_wrap=name in ("name", "members"))
    for name, path in known.items():
        # Built-in ensembles are checked by the tests, so the list does not import networks.
        content = yaml.load(Path(path).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        about = content["about"]
        # Scores of the first set only: it is the closest to the ensemble's purpose.
        first = [f"{data}: {numbers(of_the_ensemble(values))}" for data, values in about["scores"].items()][:1]
        scores = "".join(first)
        cells = (name, f"{len(content['members'])}", about["description"], scores)
        table.add_row(*map(Text, cells))
    return table


def of_the_ensemble(scores: Mapping[str, float]) -> Mapping[str, float]:
    """Return the scores of all members together, where single members have some, too; `--json` has them all."""
    whole = {name.removesuffix(":ensemble"): value for name, value in scores.items() if name.endswith(":ensemble")}
    return whole or scores


def numbers(values: Mapping[str, float]) -> str:
    """Format names and values in one line."""
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())
