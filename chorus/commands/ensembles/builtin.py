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
    """List the ensembles that Chorus brings; each is taken by its name, as in `chorus predict --ensemble NAME`.

    `chorus ensemble show NAME` says more of one; `--json` has all scores.

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
    """The ensembles that Chorus brings, by name and path."""
    import yaml

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("name", "members", "description", "scores"):
        table.add_column(Text(name), no_wrap=name in ("name", "members"))
    for name, path in known.items():
        # They are ours and checked in our tests: whoever looks at the list does not wait until networks are imported.
        content = yaml.load(Path(path).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        about = content["about"]
        # Of the first set alone: it is the one that is most like what the ensemble is for.
        first = [f"{data}: {numbers(of_the_ensemble(found))}" for data, found in about["scores"].items()][:1]
        scores = "".join(first)
        cells = (name, f"{len(content['members'])}", about["description"], scores)
        table.add_row(*map(Text, cells))
    return table


def of_the_ensemble(scores: Mapping[str, float]) -> Mapping[str, float]:
    """The scores of all members together, where single ones have some, too; `--json` has them all."""
    whole = {name.removesuffix(":ensemble"): value for name, value in scores.items() if name.endswith(":ensemble")}
    return whole or scores


def numbers(values: Mapping[str, float]) -> str:
    """Names and values in a line."""
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())
