"""Progress of a training for people: a bar per fold on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from chorus.console.format import duration
from chorus.console.progress import remaining
from chorus.pipeline.training.records import FoldResult, Step

_LINE_SECONDS = 15.0


class TrainingReporter:
    """Implements `chorus.cluster.training.folds.FoldReporter` on a console.

    Parameters
    ----------
    console : where to write; live bars are drawn if it is a terminal
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._tasks: dict[int, TaskID] = {}
        self._first: dict[int, tuple[float, int]] = {}
        self._printed: dict[int, float] = {}
        self._dice: dict[int, float] = {}

    def phase(self, text: str) -> None:
        """Print what begins."""
        self._console.print(f"{text} ...", style="dim", highlight=False, soft_wrap=True, markup=False)

    def note(self, text: str) -> None:
        """Print an event that a person should know."""
        self._console.print(text, style="yellow", highlight=False, soft_wrap=True, markup=False)

    def begin(self, folds: Sequence[int], steps: int, devices: int) -> None:
        """Print what is trained and start the bars."""
        self.phase(f"training {len(folds)} folds of {steps} steps, {min(devices, len(folds))} at a time")
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("fold {task.fields[fold]}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rates]}", style="cyan"),
                console=self._console,
            )
            self._tasks = {f: self._progress.add_task("", total=steps, fold=f, rates="waiting") for f in folds}
            self._progress.start()

    def step(self, step: Step) -> None:
        """Update the bar of the step's fold, or print a line now and then."""
        if step.mean_dice is not None:
            self._dice[step.fold] = step.mean_dice
        begun, first = self._first.setdefault(step.fold, (time.monotonic(), step.step))
        rates = self._rates(step, time.monotonic() - begun, step.step - first)
        if self._progress is not None:
            self._progress.update(self._tasks[step.fold], completed=step.step, rates=rates)
        elif step.dice is not None or time.monotonic() - self._printed.get(step.fold, begun) >= _LINE_SECONDS:
            self._printed[step.fold] = time.monotonic()
            self._line(f"fold {step.fold}: {step.step}/{step.steps}  {rates}")

    def fold(self, result: FoldResult) -> None:
        """Show the result of a fold."""
        ap50 = "" if result.ap50 is None else f", AP at 0.5 {result.ap50:.3f}"
        ended = (
            f"Dice {result.mean_dice:.3f}{ap50} on its validation images, at step {result.best_step}; "
            f"{duration(result.seconds)}"
        )
        if self._progress is not None:
            self._progress.update(self._tasks[result.fold], completed=result.steps, rates=ended)
        else:
            self._line(f"fold {result.fold} is done: {ended}")

    def end(self) -> None:
        """Stop the bars."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _rates(self, step: Step, seconds: float, done: int) -> str:
        """Return rate, time left, loss, and Dice of the last validation."""
        more = step.steps - step.step
        left = f"{remaining(seconds / done * more)} left  " if done > 0 and more > 0 else ""
        dice = f"  Dice {self._dice[step.fold]:.3f}" if step.fold in self._dice else ""
        return f"{step.images_per_second:.1f} patches/s  {left}loss {step.loss:.4f}{dice}"

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)
