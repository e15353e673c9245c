"""The result of a training whose folds are done: scores on unseen images, curves, ``ensemble.yaml``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import yaml
from pydantic import BaseModel, ConfigDict

from chorus.cluster.training.fold_work import Evaluated, FoldJob
from chorus.cluster.training.folds import FoldReporter, FoldRunner
from chorus.pipeline.core.provenance import About
from chorus.pipeline.ensembles.ensemble import Ensemble, content_hash
from chorus.pipeline.errors import DamagedError
from chorus.pipeline.io import storage
from chorus.pipeline.io.json_documents import parsed
from chorus.pipeline.io.storage_failures import storage_errors
from chorus.pipeline.report.curves import Curve, Panel, draw_curves
from chorus.pipeline.training.data.pairs import TrainingPair
from chorus.pipeline.training.evaluation import FoldScore, summarise, verdict
from chorus.pipeline.training.records import FoldResult, read_log
from chorus.pipeline.training.settings import TrainSettings
from chorus.pipeline.training.summary import ensemble_spec, training_summary

log = logging.getLogger("chorus")

CURVES, SCORES = ("training", "curves.svg"), ("training", "scores.json")


class ScoresRecord(BaseModel):
    """``training/scores.json``: scores of an ensemble, by its hash, on some images.

    Attributes
    ----------
    failed : names of images that could not be evaluated, and why
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    ensemble: str
    pairs: list[TrainingPair]
    scores: list[FoldScore]
    failed: list[tuple[str, str]]


@dataclass
class Written:
    """The ensemble that was written.

    Attributes
    ----------
    hash : identifies it in every output
    scores, verdicts : by data set
    failed : test images that could not be evaluated, and why
    """

    hash: str
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)
    failed: list[tuple[str, str]] = field(default_factory=list)


def write_ensemble(
    job: FoldJob,
    name: str,
    about: About,
    results: Sequence[FoldResult],
    test: tuple[str, Sequence[TrainingPair]],
    runner: FoldRunner,
    reporter: FoldReporter,
) -> Written:
    """Draw the curves, evaluate on `test` (its name and pairs) if there are any, and write ``ensemble.yaml`` last."""
    url = storage.join(job.out, *CURVES)
    with storage_errors(url):
        storage.write_bytes(url, curves(job, results).encode())
    reporter.phase("describing the images that were trained on")
    summary = training_summary(job.pairs, job.settings, results)
    data = [reference.model_copy(update={"images": summary.images}) for reference in about.data]
    about = about.model_copy(update={"training": summary, "data": data})
    spec = ensemble_spec(name, job.settings, results, about)
    url = storage.join(job.out, "ensemble.yaml")
    ensemble = Ensemble(url=url, spec=spec, hash=content_hash(spec))
    written = Written(ensemble.hash)
    test_name, pairs = test
    if pairs:
        evaluated = _evaluated(job, ensemble, pairs, runner, reporter)
        written.failed = evaluated.failed
        if evaluated.scores:
            written.scores[test_name] = summarise(evaluated.scores)
            written.verdicts[test_name] = verdict(written.scores[test_name])
        spec = spec.model_copy(update={"about": spec.about.model_copy(update={"scores": written.scores})})
    text = yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
    with storage_errors(url):
        storage.write_bytes(url, text.encode())
    return written


def _evaluated(
    job: FoldJob, ensemble: Ensemble, pairs: Sequence[TrainingPair], runner: FoldRunner, reporter: FoldReporter
) -> Evaluated:
    """Return the scores of exactly this ensemble on exactly these pairs, from an earlier session or measured now."""
    url = storage.join(job.out, *SCORES)
    known = _read_scores(url)
    if known is not None and (known.ensemble, known.pairs) == (ensemble.hash, list(pairs)):
        return Evaluated(known.scores, known.failed)
    reporter.phase(f"evaluating {len(ensemble.spec.members)} members and the ensemble on {len(pairs)} images")
    evaluation = runner.evaluate(job, ensemble, pairs)
    record = ScoresRecord(ensemble=ensemble.hash, pairs=list(pairs), scores=evaluation.scores, failed=evaluation.failed)
    with storage_errors(url):
        storage.write_record(url, record.model_dump_json(indent=1).encode())
    return evaluation


def _read_scores(url: str) -> ScoresRecord | None:
    """Return the scores that an earlier session measured; None if there are none, or they are damaged."""
    with storage_errors(url):
        if not storage.exists(url):
            return None
        data = storage.read_bytes(url)
    try:
        return parsed(data, ScoresRecord, url, "the images are evaluated again")
    except DamagedError as error:
        log.warning("%s", error)
        return None


def curves(job: FoldJob, results: Sequence[FoldResult]) -> str:
    """Return loss and validation Dice of every fold over its steps, as SVG."""
    loss, dice = [], []
    for result in results:
        steps = read_log(job.out, result.fold)
        name = f"fold {result.fold}"
        loss.append(Curve(name, [(step.step, step.loss) for step in steps]))
        dice.append(Curve(name, [(step.step, step.mean_dice) for step in steps if step.mean_dice is not None]))
    best = ", ".join(f"fold {result.fold}: {result.mean_dice:.3f} at step {result.best_step}" for result in results)
    panels = [
        Panel(f"Training loss ({_loss_name(job.settings)})", "step", loss),
        Panel("Validation Dice", "step", dice, (0.0, 1.0)),
    ]
    return draw_curves(panels, f"Training loss and validation Dice over the steps; best Dice of {best}")


def _loss_name(settings: TrainSettings) -> str:
    names = {"ce_dice": "cross-entropy and Dice", "focal": "focal", "tversky": "Tversky", "lovasz": "Lovász"}
    return names[settings.loss] + "".join(f" and {name}" for name in ("flows", "boundaries") if getattr(settings, name))
