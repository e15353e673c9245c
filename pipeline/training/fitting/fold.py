"""Train one member: cycles, checkpoints, validation, and the weights that are kept.

All random numbers are derived from the seed, the fold and the step, so a fold that was interrupted and resumes from its
last checkpoint ends with the same bits as one that was not (on the same kind of device, on a CPU).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from chorus.pipeline.core.devices import device_of
from chorus.pipeline.errors import CutShortError, RefusedError
from chorus.pipeline.inference.members import AUTOCAST
from chorus.pipeline.io import storage
from chorus.pipeline.members.contract import in_channels_last
from chorus.pipeline.training.data.augment import augmented
from chorus.pipeline.training.data.pairs import TrainingPair
from chorus.pipeline.training.data.patches import Draw, PatchSource, prepare
from chorus.pipeline.training.data.splits import split
from chorus.pipeline.training.fitting.finder import find_learning_rate
from chorus.pipeline.training.fitting.losses import new_loss
from chorus.pipeline.training.fitting.networks import (
    fill_from,
    freeze_encoder,
    member_weights,
    new_network,
    random_network,
)
from chorus.pipeline.training.fitting.schedule import Cycle, cycles
from chorus.pipeline.training.fitting.validation import average_precision_50, dice_scores, prepare_validation
from chorus.pipeline.training.records import FoldResult, Step, fold_folder, read_result
from chorus.pipeline.training.settings import TrainSettings

_log = logging.getLogger(__name__)

_CHECKPOINT_SECONDS = 60.0
_LOG_SECONDS = 5.0
_LINES = 200  # of a fold's log, besides those with a Dice
# Purposes of random numbers: part of their seed, beside the seed of the settings and the fold.
_FOR_WEIGHTS, _FOR_STEPS, _FOR_FINDER = 1, 2, 3


def train_fold(
    settings: TrainSettings,
    pairs: Sequence[TrainingPair],
    fold: int,
    folder: str,
    progress: Callable[[Step], None],
    stop: Callable[[], bool],
    device: torch.device,
    threads: int,
) -> FoldResult:
    """Train member `fold` on its share of `pairs` and write it to `folder`; resumes from its last checkpoint.

    A fold that is done returns its result at once. Otherwise ``folds/<fold>/`` gets a checkpoint once a minute and at
    every validation, the log as JSON lines, and the weights to be kept so far as ``kept.safetensors``, which is already
    a usable member; at the end ``member-<fold>.safetensors`` and then ``folds/<fold>/result.json`` are written.

    Parameters
    ----------
    settings : of the training
    pairs : all images and labels
    fold : index of the member
    folder : of the ensemble
    progress : called with every line of the log
    stop : called before every step; True ends the fold with a checkpoint and CutShortError
    device : that computes
    threads : of torch

    Raises
    ------
    RefusedError
        If `folder` contains a fold of other settings or images, or the loss is no longer finite.
    CutShortError
        If `stop` returned True.
    """
    share = split([pair.group for pair in pairs], settings.folds, settings.seed)[fold]
    identity = _identity(settings, pairs, fold, share.train)
    done = read_result(folder, fold)
    if done is not None:
        if done.identity != identity:
            raise _other_settings(folder, fold)
        return done
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with device_of(device).forked_random():
            training = [pair for pair in pairs if pair.group in share.train]
            validation = [pair for pair in pairs if pair.group in share.validation]
            trainer = _Trainer(settings, training, validation, fold, folder, identity, progress, device)
            return trainer.run(stop)
    finally:
        torch.set_num_threads(before)


def _identity(settings: TrainSettings, pairs: Sequence[TrainingPair], fold: int, train: Sequence[str]) -> str:
    """Return a hash of everything that a checkpoint depends on."""
    content = [settings.fingerprint(), fold, list(train), sorted(" ".join(map(str, (p.name, *p.shape))) for p in pairs)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _other_settings(folder: str, fold: int) -> RefusedError:
    return RefusedError(
        f"{fold_folder(folder, fold)}: was trained with other settings or images; choose another --out, or give the "
        "same settings and images again to go on"
    )


@dataclass
class _Progress:
    """Content of a checkpoint besides tensors."""

    step: int = 0
    best: float = -1.0
    best_step: int = 0
    seconds: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class _Trainer:
    """One fold during its training."""

    def __init__(
        self,
        settings: TrainSettings,
        training: Sequence[TrainingPair],
        validation: Sequence[TrainingPair],
        fold: int,
        folder: str,
        identity: str,
        progress: Callable[[Step], None],
        device: torch.device,
    ) -> None:
        self._settings, self._fold, self._folder, self._device = settings, fold, folder, device
        self._identity, self._tell = identity, progress
        self._begun = time.monotonic()
        self._loss = new_loss(settings.loss)
        self._names = sorted({p.group for p in training}), sorted({p.group for p in validation})
        self._source = PatchSource([prepare(pair, settings) for pair in training], settings)
        self._validation = [prepare_validation(pair, settings) for pair in validation]
        self._seed = (settings.seed, fold)
        self._saved = self._logged = self._line = time.monotonic()
        self._line_every = max(1, settings.steps // _LINES)
        self._begin()

    def _begin(self) -> None:
        """Load the network, the optimiser and the progress from the last checkpoint, or create them."""
        settings, seed = self._settings, (1000 * self._settings.seed + self._fold) * 10 + _FOR_WEIGHTS
        state = self._read_checkpoint()
        if state is None:
            network, self._begun_with = new_network(settings, seed)
        else:
            network, self._begun_with = random_network(settings, seed), state["begun_with"]
        self._network = in_channels_last(network, self._device)
        self._network.train()
        self._at = _Progress()
        rate = settings.learning_rate if state is None else state["learning_rate"]
        self._rate = self._find() if rate == "find" else float(rate)
        self._cycles = cycles(settings, self._begun_with != "random", self._rate)
        if state is not None:
            self._at = _Progress(**state["progress"])
            self._network.load_state_dict(state["network"])
        self._enter(next((c for c in self._cycles if c.start <= self._at.step < c.stop), self._cycles[-1]))
        if state is not None and self._at.step != self._cycle.start:
            self._optimizer.load_state_dict(state["optimizer"])
            self._scheduler.load_state_dict(state["scheduler"])

    def _find(self) -> float:
        """Find a learning rate, by a range test on other patches than those of the training."""
        finder = find_learning_rate(
            self._network,
            lambda network, step: self._loss_of(network, self._source.draw((*self._seed, _FOR_FINDER, step))),
            self._settings.weight_decay,
        )
        _log.info("fold %d: learning rate %.2g found", self._fold, finder.suggestion)
        return finder.suggestion

    def _enter(self, cycle: Cycle) -> None:
        self._cycle = cycle
        freeze_encoder(self._network, cycle.frozen)
        learning = [p for p in self._network.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            learning, lr=cycle.learning_rate, weight_decay=self._settings.weight_decay, fused=True
        )
        self._scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, max_lr=cycle.learning_rate, total_steps=cycle.stop - cycle.start + 1
        )

    def run(self, stop: Callable[[], bool]) -> FoldResult:
        """Train until all steps are done, and return the result.

        Raises
        ------
        CutShortError
            If `stop` returned True; a checkpoint was written.
        RefusedError
            If the loss is no longer finite.
        """
        settings, at = self._settings, self._at
        while at.step < settings.steps:
            if stop():
                self._checkpoint()
                raise CutShortError(
                    f"training: fold {self._fold} was stopped at step {at.step} of {settings.steps}; run the same "
                    "command again to go on"
                )
            if at.step == self._cycle.stop:
                self._enter(next(c for c in self._cycles if c.start == at.step))
            rate = self._step()
            validate = at.step % settings.validate_every == 0 or at.step == settings.steps
            dice = self._validate() if validate else None
            if dice or at.step % self._line_every == 0:
                self._say(rate, dice)
            if validate or time.monotonic() - self._saved > _CHECKPOINT_SECONDS:
                self._checkpoint()
        return self._finish()

    def _step(self) -> float:
        """Learn from one batch; return the learning rate of this step."""
        at = self._at
        draw = self._source.draw((*self._seed, _FOR_STEPS, at.step))
        torch.manual_seed(draw.seed)  # for layers that are random themselves, such as dropout
        loss = self._loss_of(self._network, draw)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        rate = float(self._optimizer.param_groups[0]["lr"])
        self._optimizer.step()
        self._scheduler.step()
        at.losses.append(loss.item())
        at.step += 1
        return rate

    def _loss_of(self, network: torch.nn.Module, draw: Draw) -> torch.Tensor:
        batch = augmented(draw, self._settings.patch_shape, self._device)
        dtype = AUTOCAST.get(self._settings.precision)
        with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
            outputs = network(batch.images)
        return self._loss(outputs, batch)

    def _validate(self) -> dict[str, float]:
        """Return the Dice per class; write the weights that are to be kept so far."""
        at = self._at
        dice = dice_scores(self._network, self._validation, self._settings, self._device)
        mean = sum(dice.values()) / len(dice)
        if self._settings.keep == "last" or mean > at.best:
            at.best, at.best_step = mean, at.step
            # Before the checkpoint that refers to it: after a crash between them the same weights are written again.
            self._write("kept.safetensors", member_weights(self._network, self._settings.weights_dtype))
        return dice

    def _say(self, rate: float, dice: dict[str, float] | None) -> None:
        at, now = self._at, time.monotonic()
        mean = sum(at.losses) / len(at.losses)
        if not mean < float("inf"):
            raise RefusedError(
                f"training: the loss of fold {self._fold} is {mean} at step {at.step}; lower the learning rate, or use "
                "precision fp32"
            )
        line = Step(
            fold=self._fold,
            step=at.step,
            steps=self._settings.steps,
            loss=mean,
            learning_rate=rate,
            dice=dice,
            images_per_second=len(at.losses) * self._settings.batch / max(1e-9, now - self._line),
        )
        at.log.append(line.model_dump())
        at.losses.clear()
        self._line = now
        self._tell(line)
        if now - self._logged > _LOG_SECONDS:
            self._write_log()

    def _write_log(self) -> None:
        lines = [json.dumps(line) for line in self._at.log]
        self._write("log.jsonl", "".join(f"{line}\n" for line in lines).encode())
        self._logged = time.monotonic()

    def _write(self, name: str, data: bytes) -> None:
        storage.write_bytes(storage.join(fold_folder(self._folder, self._fold), name), data)

    def _seconds(self) -> float:
        """Return the time spent on this fold, including earlier attempts."""
        now = time.monotonic()
        self._at.seconds += now - self._begun
        self._begun = now
        return self._at.seconds

    def _checkpoint(self) -> None:
        self._seconds()
        buffer = io.BytesIO()
        torch.save(
            {
                "identity": self._identity,
                "begun_with": self._begun_with,
                "learning_rate": self._rate,
                "progress": vars(self._at),
                "network": self._network.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "scheduler": self._scheduler.state_dict(),
            },
            buffer,
        )
        self._write("checkpoint.pt", buffer.getvalue())
        self._write_log()
        self._saved = time.monotonic()

    def _read_checkpoint(self) -> dict[str, Any] | None:
        try:
            data = storage.read_bytes(storage.join(fold_folder(self._folder, self._fold), "checkpoint.pt"))
        except FileNotFoundError:
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=self._device, weights_only=True)
        if state["identity"] != self._identity:
            raise _other_settings(self._folder, self._fold)
        return state

    def _finish(self) -> FoldResult:
        """Write the member, and score it as it was written."""
        settings, at = self._settings, self._at
        data = storage.read_bytes(storage.join(fold_folder(self._folder, self._fold), "kept.safetensors"))
        name = f"member-{self._fold}.safetensors"
        storage.write_bytes(storage.join(self._folder, name), data)
        fill_from(self._network, data)
        precision = None
        if settings.instances:
            precision = average_precision_50(self._network, self._validation, settings, self._device)
        result = FoldResult(
            fold=self._fold,
            identity=self._identity,
            begun_with=self._begun_with,
            learning_rate=self._rate,
            steps=settings.steps,
            best_step=at.best_step,
            weights=name,
            sha256=hashlib.sha256(data).hexdigest(),
            weights_dtype=settings.weights_dtype,
            train=self._names[0],
            validation=self._names[1],
            dice=dice_scores(self._network, self._validation, settings, self._device),
            ap50=precision,
            seconds=self._seconds(),
        )
        self._write("result.json", result.model_dump_json(indent=2).encode())
        return result
