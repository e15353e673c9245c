"""What adaptive effort saves and what it costs: passes, Dice, U and the order of images, against full effort.

Every group of images is predicted with full effort, with adaptive effort by a bound that was measured on the reference
images, and with what one could do instead: no augmentation, and fewer members. All are compared with full effort. Risk
and out-of-distribution scores come from a reference set of the images in ``dsb2018/train``, at full effort.

    python benchmarks/effort.py DATA WORK --only dsb2018-test --only ood-fluor_tissue
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd
import typer
import yaml
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from chorus.cluster.commands.convert import ConvertRequest, convert
from chorus.cluster.commands.effort import add_effort, tile_efforts
from chorus.cluster.evaluation.run import EvaluateRequest, evaluate, read_evaluation
from chorus.cluster.planning.requests import PredictRequest
from chorus.cluster.planning.resolved_settings import resolve
from chorus.cluster.planning.settings import ResultSettings, RunSettings
from chorus.cluster.predict import predict
from chorus.cluster.runtime.reporting import Silent
from chorus.cluster.state.results import finished_run
from chorus.cluster.state.scores import read_features, read_scores
from chorus.pipeline.ensembles.editing import remove
from chorus.pipeline.ensembles.ensemble import read_ensemble
from chorus.pipeline.inference.adaptive_bound import stopped_at
from chorus.pipeline.reference.flags import flag_images
from chorus.pipeline.reference.reference import Reference, calibrate_from

# Wide enough for the table where it is written to a file.
console = Console(width=None if sys.stdout.isatty() else 220)
# Stained tissue is taken by its grey values, as in benchmarks/starter.py.
GROUPS = {
    "dsb2018-test": "dsb2018/test",
    **{f"ood-{name}": f"dsb2018/ood/{name}" for name in ("fluor_small_shift", "fluor_large", "fluor_tissue")},
    **{f"ood-{name}": f"dsb2018/ood/{name}" for name in ("he", "brightfield")},
}
# Of neither are images scored here; on those of dsb2018/train members were trained, on those of bbbc039/test none was.
REFERENCES = ("dsb2018/train", "bbbc039/test")
LEFT = 2
"""Members of the ensemble with fewer of them."""
SCORES = ("uncertainty", "epistemic", "pairwise_dice", "risk", "ood_score")


def main(
    data: Annotated[Path, typer.Argument(help="Folder that holds dsb2018 and bbbc039.")],
    work: Annotated[Path, typer.Argument(help="Gets images and results; what is there is used.")],
    ensemble: Annotated[Path, typer.Option(help="The ensemble's folder.")] = Path("chorus/builtin/nuclei-fluo"),
    only: Annotated[list[str] | None, typer.Option(help=f"Out of {', '.join(GROUPS)}; by default all.")] = None,
    mechanisms: Annotated[
        bool, typer.Option(help="Also how much of it is empty background: all tiles once more.")
    ] = False,
    executor: Annotated[str, typer.Option(help="ray, or serial")] = "serial",
    out: Annotated[Path | None, typer.Option("--json", help="Keep the table here.")] = None,
) -> None:
    """Print the table, a row per group and way, and one for all groups together."""
    ways = _ways(ensemble, work, data, executor)
    reference = _reference(ways["full"], work, data, executor)
    tables, saved = [], {}
    for group in only or list(GROUPS):
        images, labels = _zarr(data, GROUPS[group], work), data / GROUPS[group] / "labels"
        for way, (folder, settings) in ways.items():
            begun = time.monotonic()
            tables.append(_run(images, labels, folder, settings, work / "out" / group / way, executor, reference))
            tables[-1]["group"], tables[-1]["way"] = group, way
            console.print(f"{group}, {way}: {time.monotonic() - begun:.0f} s")
        if mechanisms:
            saved[group] = _mechanisms(ways["adaptive"][0], images)
    found = pd.concat(tables, ignore_index=True)
    rows = [_compare(found[found["group"] == group], group) for group in found["group"].unique()]
    content = [row for group in [*rows, _compare(found, "all")] for row in group]
    _print(content)
    for group, parts in saved.items():
        console.print(
            f"{group}: saved {parts['empty']:.1%} of the passes by empty tiles, {parts['settled']:.1%} by others"
        )
    if out is not None:
        out.write_text(json.dumps({"rows": content, "mechanisms": saved}, indent=2))


def _ways(ensemble: Path, work: Path, data: Path, executor: str) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Folders of ensembles with the settings that they are run with."""
    folder, few = work / "ensemble", work / "few"
    for target in (folder, few):
        if not target.exists():
            shutil.copytree(ensemble, target)
            content = yaml.safe_load((target / "ensemble.yaml").read_text())
            content.pop("effort", None)
            (target / "ensemble.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    members = len(read_ensemble(str(few)).spec.members)
    if members > LEFT:
        remove(str(few), [str(index) for index in range(LEFT, members)])
    if read_ensemble(str(folder)).spec.effort is None:
        sources = [str(_zarr(data, place, work)) for place in REFERENCES]
        _, bound = add_effort(str(folder), sources, reference=" and ".join(REFERENCES))
        console.print(f"bound: {bound.model_dump()}")
    return {
        "full": (folder, {}),
        "adaptive": (folder, {"effort": "adaptive"}),
        "no augmentation": (folder, {"augmentations": ["identity"]}),
        f"{LEFT} members": (few, {}),
    }


def _zarr(data: Path, place: str, work: Path) -> Path:
    """The images of a group as OME-Zarr."""
    images = data / place / "images_grey"
    out = work / "images" / place
    if not (out / "run.json").exists():
        source = images if images.is_dir() else data / place / "images"
        convert(ConvertRequest(sources=[str(source)], out=str(out), executor="serial"), Silent())
    return out


def _reference(way: tuple[Path, dict[str, Any]], work: Path, data: Path, executor: str) -> Reference:
    images, out = _zarr(data, REFERENCES[0], work), work / "out/reference"
    _predicted(images, data / REFERENCES[0] / "labels", *way, out, executor)
    tables = read_scores(str(out)), read_evaluation(str(out)), read_features(str(out))
    return calibrate_from(*tables, ensemble=read_ensemble(str(way[0])).hash)


def _predicted(images: Path, labels: Path, folder: Path, settings: dict[str, Any], out: Path, executor: str) -> None:
    run = RunSettings.model_validate({"executor": executor, "thumbnails": False, "sentinels": "skip"})
    result = ResultSettings.model_validate({"save": ["probability"]} | settings)
    request = PredictRequest(sources=[str(images)], ensemble=str(folder), out=str(out), settings=result, run=run)
    predict(request, Silent())
    evaluate(EvaluateRequest(out=str(out), truth=str(labels), executor="serial"), Silent())


def _run(
    images: Path, labels: Path, folder: Path, settings: dict[str, Any], out: Path, executor: str, reference: Reference
) -> pd.DataFrame:
    """A row per image: scores, Dice, risk and out-of-distribution scores, and the passes that it took."""
    _predicted(images, labels, folder, settings, out, executor)
    scores, record = read_scores(str(out)), finished_run(str(out))
    dice = read_evaluation(str(out)).set_index("name").filter(regex="^dice:").mean(axis=1)
    whole = len(record.settings.augmentations) * record.ensemble.members
    scores["passes"] = scores["tiles"] * scores.get("samples", whole)
    scores["dice"] = scores["name"].map(dice)
    if record.ensemble.hash == reference.ensemble:
        flags = flag_images(scores, reference, read_features(str(out))).set_index("name")
        scores["risk"], scores["ood_score"] = (scores["name"].map(flags[name]) for name in ("risk", "ood_score"))
    return scores


def _compare(found: pd.DataFrame, group: str) -> list[dict[str, Any]]:
    """Each way against full effort: shares and means over images, and the rank correlation of each score."""
    full = found[found["way"] == "full"].set_index(["group", "name"])
    rows = []
    for way in found["way"].unique():
        other = found[found["way"] == way].set_index(["group", "name"]).loc[full.index]
        row = {
            "group": group,
            "way": way,
            "images": len(full),
            "saved": 1 - float(other["passes"].sum() / full["passes"].sum()),
            "dice": float(other["dice"].mean()),
            "dice_loss": float((full["dice"] - other["dice"]).mean()),
            "dice_loss_max": float((full["dice"] - other["dice"]).max()),
            "u_shift": float((full["uncertainty"] - other["uncertainty"]).abs().mean()),
        }
        for name in SCORES:
            known = np.isfinite(full.get(name, np.nan)) & np.isfinite(other.get(name, np.nan))
            row[f"rho:{name}"] = float(spearmanr(full[name][known], other[name][known])[0]) if known.sum() > 2 else None
        rows.append(row)
    return rows


def _mechanisms(folder: Path, images: Path) -> dict[str, float]:
    """Shares of all passes that are saved by tiles without any foreground, and by others, each tile counted once."""
    ensemble = read_ensemble(str(folder))
    bound = ensemble.spec.effort
    assert bound is not None
    of_images = tile_efforts(ensemble, resolve(ResultSettings(), ensemble), [str(images)], lambda text: None)
    tiles = [tile for image in of_images for tile in image]
    saved = {}
    for name, kind in (("empty", True), ("settled", False)):
        of_kind = [tile for tile in tiles if tile.empty == kind]
        counts = stopped_at(of_kind, bound.factors, bound.changed)
        left_out = (count * (1 - ways / len(bound.augmentations)) for ways, count in enumerate(counts, 1))
        saved[name] = sum(left_out) / len(tiles)
    return saved | {"empty_tiles": sum(tile.empty for tile in tiles) / len(tiles)}


def _print(content: list[dict[str, Any]]) -> None:
    table = Table()
    heads = ("group", "way", "images", "saved", "Dice", "Dice loss", "largest", "|dU|", *(f"rho {n}" for n in SCORES))
    for head in heads:
        table.add_column(head, justify="left" if head in ("group", "way") else "right")
    for row in content:
        rho = ["" if row[f"rho:{name}"] is None else f"{row[f'rho:{name}']:.3f}" for name in SCORES]
        numbers = [f"{row[name]:.4f}" for name in ("dice", "dice_loss", "dice_loss_max", "u_shift")]
        table.add_row(row["group"], row["way"], f"{row['images']}", f"{row['saved']:.1%}", *numbers, *rho)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
