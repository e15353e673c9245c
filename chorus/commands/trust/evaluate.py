"""``chorus evaluate`` and ``chorus compare``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from chorus.console.options import Address, Executor, Json, validated
from chorus.pipeline.errors import CutShortError

if TYPE_CHECKING:
    from chorus.cluster.evaluation.compare import RunComparison
    from chorus.cluster.evaluation.documents import EvaluationRecord, EvaluationRow
    from chorus.cluster.state.outcome import Outcome

_SHOWN = 10
_Truth = Annotated[
    str | None, typer.Option(help="Folder of TIFF, PNG or OME-Zarr labels named as the images; or of `chorus truth`.")
]
_TruthLabel = Annotated[
    str | None, typer.Option(help="Name of the label image inside each source OME-Zarr (of TRUTH, where given).")
]
_METRICS = {
    "dice": "Dice",
    "ap50": "AP at IoU 0.5",
    "map": "mAP (IoU 0.5 to 0.95)",
    "panoptic_quality": "panoptic quality",
    "calibration_error": "calibration error of pixels",
    "baseline_dice": "Otsu's threshold: Dice",
    "baseline_ap50": "Otsu and watershed: AP at IoU 0.5",
    "baseline_map": "Otsu and watershed: mAP",
    "expert_dice_min": "experts: lowest Dice",
    "expert_dice_mean": "experts: mean Dice",
    "expert_dice_max": "experts: highest Dice",
}


def evaluate(
    out: Annotated[str, typer.Argument(help="Results of `chorus predict`.")],
    truth: _Truth = None,
    truth_label: _TruthLabel = None,
    experts: Annotated[
        str | None, typer.Option(help="Experts' drawings, EXPERT/IMAGE: their own scores beside.")
    ] = None,
    expert: Annotated[
        list[str] | None, typer.Option(help="Folder or pattern of EXPERTS to take, e.g. `expert_*`; by default all.")
    ] = None,
    objects: Annotated[
        Literal["labels", "components"],
        typer.Option(help="Objects: the run's `labels/<class>`, or connected components of its semantic labels."),
    ] = "labels",
    minimum_size: Annotated[int, typer.Option(help="Objects of fewer pixels are left out.")] = 0,
    baseline: Annotated[bool, typer.Option(help="Measure Otsu's threshold beside.")] = True,
    executor: Executor = "auto",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Measure predictions against a truth: Dice, IoU, boundaries, objects; beside annotators and a simple baseline.

    Leaves `evaluation.parquet` (a row per image) and `evaluation.json` in OUT; docs/evaluation.md defines each
    column. Exit code 0: all done, 1: finished with failed images, 2: refused, 3: interrupted, resumable.

    **Examples**

    `chorus evaluate results/ --truth masks/`

    `chorus evaluate results/ --truth-label nuclei --objects components --minimum-size 15`

    `chorus evaluate results/ --truth truth/ --experts drawings/ --expert 'expert_*'`
    """
    from chorus.cluster.evaluation import run as evaluating
    from chorus.console.progress import ConsoleReporter

    err = Console(stderr=True)
    settings = {"objects": objects, "minimum_size": minimum_size, "baseline": baseline}
    content: dict[str, Any] = {"truth": truth, "truth_label": truth_label, "experts": experts, "expert": expert or []}
    content |= {"out": out, "executor": executor, "address": address, "settings": settings}
    request = validated(evaluating.EvaluateRequest, content, "evaluate")
    outcome = evaluating.evaluate(request, ConsoleReporter(err, units="images", devices="cores"))
    if as_json:
        print(json.dumps(outcome.content))
    elif outcome.state != "interrupted":
        Console().print(_means_table(outcome.summary))
    for line in _lines(outcome):
        err.print(line, highlight=False, soft_wrap=True, markup=False)
    raise typer.Exit(outcome.exit_code)


def compare(
    outs: Annotated[list[str], typer.Argument(help="Two or more results of `chorus predict` for the same images.")],
    metric: Annotated[str, typer.Option(help="A column of evaluation.parquet, e.g. `dice`, `ap50`.")] = "dice",
    truth: Annotated[str | None, typer.Option(help="Evaluate each run against it first, as `chorus evaluate`.")] = None,
    executor: Executor = "auto",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Say whether one of several ensembles is better on the same images, and whether the difference is significant.

    Two are compared by Wilcoxon's signed-rank test, more by Friedman's and Nemenyi's, with effect sizes and bootstrap
    intervals. Each is evaluated before, by `chorus evaluate`, or here with --truth.

    **Examples**

    `chorus compare unet/ cellpose/`

    `chorus compare a/ b/ c/ --metric ap50`

    `chorus compare a/ b/ --truth masks/`
    """
    from chorus.cluster.evaluation import run as evaluating
    from chorus.cluster.evaluation.compare import compare_runs
    from chorus.console.progress import ConsoleReporter

    err = Console(stderr=True)
    for out in outs if truth is not None else ():
        content = {"out": out, "truth": truth, "executor": executor, "address": address}
        request = validated(evaluating.EvaluateRequest, content, "evaluate")
        evaluated = evaluating.evaluate(request, ConsoleReporter(err, units="images", devices="cores"))
        if evaluated.state == "interrupted":
            raise CutShortError(f"{out}: {evaluated.message}")
    compared = compare_runs(outs, metric)
    if as_json:
        content = asdict(compared.comparison) | {"verdict": compared.comparison.verdict, "left_out": compared.left_out}
        print(json.dumps(content))
        return
    out_console = Console()
    for table in _comparison_tables(compared):
        out_console.print(table)
    for line in [*compared.comparison.verdict, *_left_out(compared)]:
        out_console.print(line, highlight=False, soft_wrap=True, markup=False)


def _means_table(record: EvaluationRecord) -> Table:
    table = Table(title=f"{record.ensemble.name}: means over images", title_justify="left")
    for name in ("metric", "mean", "95 % interval", "images"):
        table.add_column(name, overflow="fold")
    for name, metric in record.metrics.items():
        words = _METRICS.get(name) or "Dice, " + name.removeprefix("dice:")
        table.add_row(words, _number(metric.mean), _interval(metric.low, metric.high), str(metric.images))
    return table


def _lines(outcome: Outcome[EvaluationRow, EvaluationRecord]) -> list[str]:
    """Return how the evaluation ended, what was left out, whether deep learning was needed, and what to do next."""
    record, lines = outcome.summary, []
    if images := record.images:
        left = f", {images.open} not yet" if images.open else ""
        lines.append(
            f"{images.all} images: {images.done} done, {images.empty} without prediction, "
            f"{images.failed} failed, {images.no_truth} without truth{left}"
        )
    for words, names in (
        ("images have no truth", record.without_truth),
        ("truths have no image in the run", record.truth_without_image),
    ):
        if names:
            lines.append(f"{len(names)} {words}: {', '.join(names[:_SHOWN])}{' ...' * (len(names) > _SHOWN)}")
    failures = list(record.failures.items())
    lines += [f"  failed: {name}: {message}" for name, message in failures[:_SHOWN]]
    if len(failures) > _SHOWN:
        lines.append(f"  and {len(failures) - _SHOWN} more; all are in evaluation.json")
    notes = [f"  {row.name}: {row.message}" for row in outcome.rows if row.message and row.status != "failed"]
    lines += notes[:_SHOWN]
    if outcome.state == "interrupted":
        return [*lines, f"cut short: {outcome.message}"]
    if pixels := record.pixels:
        known = {name: pixels.temperature[name] for name in pixels.error if name != "predicted"}
        bold = ", ".join(f"{name} {value:.2f}" for name, value in known.items())
        lines.append(f"pixels   calibration error {pixels.error['predicted']:.4f}; temperatures {bold}")
    if record.objects:
        lines.append(f"objects  by {record.objects}")
    if record.against_baseline:
        lines += record.against_baseline.verdict
    return [*lines, f"results  {outcome.out}/evaluation.parquet, evaluation.json"]


def _comparison_tables(compared: RunComparison) -> list[Table]:
    comparison = compared.comparison
    title = f"{comparison.metric} of {comparison.images} images ({'low' if comparison.lower else 'high'} is good)"
    means = Table(title=title, title_justify="left")
    for name in ("run", "mean", "mean rank"):
        means.add_column(name, overflow="fold")
    for name in sorted(comparison.ranks, key=lambda name: comparison.ranks[name]):
        means.add_row(name, _number(comparison.means[name]), f"{comparison.ranks[name]:.2f}")
    critical = comparison.critical_difference
    extra = "" if critical is None else f" (critical difference of mean ranks {critical:.2f})"
    pairs = Table(title=f"pairs{extra}", title_justify="left")
    for name in ("first", "second", "first - second", "95 % interval", "p", "rank-biserial"):
        pairs.add_column(name, overflow="fold")
    for one in comparison.differences:
        numbers = _number(one.mean), _interval(one.low, one.high), f"{one.p:.2g}", f"{one.effect:.2f}"
        pairs.add_row(one.first, one.second, *numbers)
    return [means, pairs]


def _left_out(compared: RunComparison) -> list[str]:
    names = list(compared.left_out)
    if not names:
        return []
    return [f"{len(names)} images are not in all runs: {', '.join(names[:_SHOWN])}{' ...' * (len(names) > _SHOWN)}"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None else f"{_number(low)} to {_number(high)}"
