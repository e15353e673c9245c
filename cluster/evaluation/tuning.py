"""`chorus objects --tune`: the options of objects that fit a truth best, tried on the labelled images of a run.

::

    OUT/objects_tuning.json     all options that were tried with their scores, and those that were chosen
    OUT/work/tuning/            a record per image and options, until the search has ended
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from chorus.cluster.evaluation.candidates import Options, changed, choices
from chorus.cluster.evaluation.image import LARGEST_PLANE
from chorus.cluster.evaluation.trials import Trial, Tried, try_and_record
from chorus.cluster.objects.inputs import Results
from chorus.cluster.objects.records import ObjectsAsked, PredictedRun
from chorus.cluster.objects.request import ObjectsRequest
from chorus.cluster.runtime.reporting import Reporter
from chorus.cluster.runtime.signals import stoppable
from chorus.cluster.runtime.started_tasks import ItemEnd, Items
from chorus.cluster.runtime.tasks import TaskResult
from chorus.cluster.state.command import Command, CommandRecord, begin_inside, earlier_record
from chorus.cluster.state.items import ItemLedger
from chorus.pipeline.consensus.annotations import Drawing, digest_of
from chorus.pipeline.consensus.truths import find_truths
from chorus.pipeline.errors import CutShortError, RefusedError
from chorus.pipeline.io import storage

RECORD, LEDGER = "objects_tuning.json", "work/tuning"
# Rounds over all options, unless one changes nothing.
_ROUNDS = 3


class TuneRequest(BaseModel):
    """Objects whose options are to be chosen.

    Attributes
    ----------
    objects : as asked for; options that are given in it stay as they are
    truth, truth_label : see `chorus.pipeline.consensus.truths.find_truths`
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    objects: ObjectsRequest
    truth: str | None = None
    truth_label: str | None = None


class TriedOptions(BaseModel):
    """Some options, and their means over the images.

    Attributes
    ----------
    options : that differ from what was asked for
    mean_precision, precision_50 : mAP (IoU 0.5 to 0.95) and AP at an IoU of 0.5
    objects : number of predicted ones in all images
    """

    options: dict[str, float | int]
    mean_precision: float
    precision_50: float
    objects: int


class TuningRecord(CommandRecord):
    """``objects_tuning.json``; what was tried is there when the search has ended.

    Attributes
    ----------
    settings, of : of the objects before the search
    truths : digest of the truth
    tried : best first; of equal ones, that which was tried first
    chosen : options of the first of them
    before : mAP without them
    left_out : mean mAP of each image with the options that are best for the others: what to expect of further images;
        None for a single image
    images : names of those that were used
    failures : messages by the images' names
    """

    command: str = "objects --tune"
    settings: ObjectsAsked
    of: PredictedRun
    truths: str
    tried: list[TriedOptions] = Field(default_factory=list)
    chosen: dict[str, float | int] = Field(default_factory=dict)
    before: float = 0.0
    left_out: float | None = None
    images: list[str] = Field(default_factory=list)
    failures: dict[str, str] = Field(default_factory=dict)


@stoppable()
def tune_objects(request: TuneRequest, reporter: Reporter) -> tuple[ObjectsRequest, TuningRecord]:
    """Choose the options whose objects have the best mean mAP over the labelled images; the same call again resumes.

    One option after the other takes the value that is best while the others stay, until none changes any more.

    Returns
    -------
    ObjectsRequest
        With the chosen options.
    TuningRecord
        Of the search, as it is kept in the run's output.

    Raises
    ------
    RefusedError
        Before any work: there are no results, or no truth for any finished image; or no trial succeeded.
    CutShortError
        If the process is told to stop.
    """
    asked = request.objects.model_copy(update={"out": storage.normalise(request.objects.out)})
    storage.check_writable(asked.out)
    if asked.flows_from is not None:
        raise RefusedError("--tune: does not go together with --flows-from; leave one of them out")
    results = Results(asked)
    reporter.phase("looking for the truth")
    truths = _truths(results, request)
    first = results.record
    digest = digest_of(truths[index] for index in sorted(truths))
    record = TuningRecord(settings=first.settings, of=first.of, truths=digest)
    command = Command(asked.out, record, RECORD, ("settings", "of", "truths"))
    with command.held():
        known = earlier_record(command)
        if known is not None and known.outcome == "complete" and not command.differing(known):
            return changed(asked, dict(known.chosen)), known
        running = begin_inside(command, known, lambda: [LEDGER])
        ledger = ItemLedger(storage.join(asked.out, LEDGER), Tried)
        search = _Search(results, truths, ledger, reporter)
        search.run()
        running.close("complete", **search.found())
        ledger.clear()
        return changed(asked, search.best), running.record


def _truths(results: Results, request: TuneRequest) -> dict[int, Drawing]:
    """Return the truth of each finished image that has one and is not too large, by its index in the table."""
    table = results.table
    images = {index: table.image(index) for index in np.flatnonzero(results.finished).tolist()}
    sources = {image.name: image.url for image in images.values()}
    found = find_truths(sources, request.truth, request.truth_label)
    small = {i: image for i, image in images.items() if image.height * image.width <= LARGEST_PLANE}
    truths = {i: found.truths[image.name] for i, image in small.items() if image.name in found.truths}
    if not truths:
        raise RefusedError(
            f"--tune: no finished image of {results.request.out} of at most {LARGEST_PLANE} pixels has a truth; give "
            "labels of smaller images"
        )
    return truths


@dataclass
class _Search:
    """The search over options; every set of options is tried once on every image.

    Attributes
    ----------
    best : the options that are best so far
    scores : by options, in the order in which they were tried: by index of the image
    """

    results: Results
    truths: Mapping[int, Drawing]
    ledger: ItemLedger[Tried]
    reporter: Reporter
    best: Options = field(default_factory=dict)
    scores: dict[str, dict[int, Tried]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    def run(self) -> None:
        """Search; raise CutShortError if storage does not take a trial's record."""
        self._known = self.ledger.read()
        self._try([{}])
        diameters = [self.results.job(index).settings.diameter for index in sorted(self.truths)]
        tried = choices(self.results, float(np.median(diameters)))
        for _ in range(_ROUNDS):
            before = self.best
            for name, values in tried.items():
                self._try(several := [_normal({**self.best, name: value}) for value in values])
                self.best = max([self.best, *several], key=self.score)
            if self.best == before:
                return

    def score(self, options: Options) -> float:
        """Return the mean mAP over all images that could be tried; of equal ones `max` takes the first."""
        return _mean([one.mean_precision for one in self._of(_key(options)).values()])

    def found(self) -> dict[str, object]:
        """Return what the record says of the search."""
        rows = [self._row(key) for key in self.scores]
        names = self.results.table.names
        return {
            "tried": sorted(rows, key=lambda row: -row.mean_precision),
            "chosen": self.best,
            "before": self.score({}),
            "left_out": self._left_out(),
            "images": [names[index] for index in self._of(_key({}))],
            "failures": {names[index]: message for index, message in self.failures.items()},
        }

    def _row(self, key: str) -> TriedOptions:
        of = [*self._of(key).values()]
        return TriedOptions(
            options=json.loads(key),
            mean_precision=_mean([one.mean_precision for one in of]),
            precision_50=_mean([one.precision_50 for one in of]),
            objects=sum(one.objects for one in of),
        )

    def _left_out(self) -> float | None:
        """Return the mean mAP of each image with the options that are best for the others."""
        images = [*self._of(_key({}))]
        if len(images) < 2:
            return None
        table = np.array([[self._of(key)[index].mean_precision for index in images] for key in self.scores])
        chosen = (table.sum(axis=1, keepdims=True) - table).argmax(axis=0)
        return _mean(table[chosen, range(len(images))].tolist())

    def _of(self, key: str) -> dict[int, Tried]:
        """Return the scores of some options on the images on which all could be tried."""
        return {index: one for index, one in sorted(self.scores[key].items()) if index not in self.failures}

    def _try(self, several: Sequence[Options]) -> None:
        """Try options on all images, but for those that were tried before."""
        trials = []
        for key, options in {_key(options): options for options in several}.items():
            if key not in self.scores:
                self.scores[key] = {}
                trials += self._trials(key, options)
        todo = [one for one in trials if not self._recorded(*one)]
        if not todo:
            return
        self.reporter.phase(f"trying {len(self.scores)} sets of options so far")

        def take(one: tuple[str, int, Trial], result: TaskResult) -> ItemEnd:
            key, index, trial = one
            pixels = trial.job.image.pixels
            if result.error is not None:
                self.failures[index] = result.error
                return ItemEnd(pixels, 0.0, result.error)
            self.scores[key][index] = result.value
            return ItemEnd(pixels)

        items = Items(todo, lambda one: (try_and_record, (one[2], self.ledger)), take)
        request, pixels = self.results.request, sum(trial.job.image.pixels for _, _, trial in todo)
        ending = items.carry_out(request.executor, request.address, self.reporter, pixels=pixels)
        if ending.state == "interrupted":
            raise CutShortError(f"{request.out}: {ending.message}")
        if len(self.failures) == len(self.truths):
            raise RefusedError(f"--tune: no image could be tried: {next(iter(self.failures.values()))}")

    def _trials(self, key: str, options: Options) -> list[tuple[str, int, Trial]]:
        results = Results(changed(self.results.request, options))
        folder = hashlib.sha256(key.encode()).hexdigest()[:16]
        names = results.table.names
        return [
            (key, index, Trial(results.job(index), truth, storage.join(folder, names[index])))
            for index, truth in self.truths.items()
            if index not in self.failures
        ]

    def _recorded(self, key: str, index: int, trial: Trial) -> bool:
        """Take what an interrupted search has recorded of a trial; return whether there is anything."""
        known = self._known.get(trial.name)
        if known is not None:
            self.scores[key][index] = known
        return known is not None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _normal(options: Options) -> Options:
    """Return options without those that are the method's default, in one order."""
    return {name: options[name] for name in sorted(options) if options[name] is not None}


def _key(options: Options) -> str:
    return json.dumps(_normal(options))
