"""How far a run is: a bar on a terminal, a line now and then elsewhere."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from planner.units import format_bytes, format_seconds
from trainer.loop.meters import MemoryMeter, StepClock


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is shown at one moment; None is not known yet."""

    step: int
    max_steps: int
    loss: float | None
    learning_rate: float | None
    tokens_per_second: float | None
    now_bytes: int | None
    peak_bytes: int | None
    predicted_bytes: int | None
    seconds_left: float | None
    eval_loss: float | None = None

    def figures(self) -> str:
        """Loss, speed and memory, in one line."""
        parts = []
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        if self.eval_loss is not None:
            parts.append(f"evaluation loss {self.eval_loss:.4g}")
        if self.learning_rate is not None:
            parts.append(f"lr {self.learning_rate:.2e}")
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if memory := self._memory():
            parts.append(f"memory {memory}")
        return "  ".join(parts)

    def time_left(self) -> str:
        """How long the rest takes, in words; empty if that is not known."""
        return f"{format_seconds(self.seconds_left)} left" if self.seconds_left is not None else ""

    def _memory(self) -> str:
        sizes = {"now": self.now_bytes, "peak": self.peak_bytes, "predicted": self.predicted_bytes}
        return ", ".join(f"{name} {format_bytes(size)}" for name, size in sizes.items() if size is not None)


class Display(Protocol):
    """Where snapshots are shown."""

    def step(self, snapshot: Snapshot) -> None:
        """Show that a step is done."""

    def log(self, snapshot: Snapshot) -> None:
        """Show figures that are worth keeping."""

    def close(self) -> None:
        """Show no more."""


class Lines:
    """A plain line for each log, for pipes and log files."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def step(self, snapshot: Snapshot) -> None:
        """Show nothing."""

    def log(self, snapshot: Snapshot) -> None:
        """Print one line."""
        line = f"step {snapshot.step}/{snapshot.max_steps}  {snapshot.figures()}  {snapshot.time_left()}".rstrip()
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def close(self) -> None:
        """Nothing is open."""


class _BarAboveFigures(Progress):
    """A bar, and below it a line that a narrow terminal cuts."""

    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The lines."""
        yield from super().get_renderables()
        yield Text(self.figures, no_wrap=True, overflow="ellipsis")


class Bar:
    """A bar that is drawn again in place, for terminals."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("training"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[time_left]}", table_column=Column(no_wrap=True, ratio=1)),
        )
        self._progress = _BarAboveFigures(*columns, console=console, expand=True)
        self._task: TaskID | None = None

    def step(self, snapshot: Snapshot) -> None:
        """Draw the bar, the time left and the figures."""
        if self._task is None:
            self._task = self._progress.add_task("training", total=snapshot.max_steps, time_left="")
            self._progress.start()
        self._progress.figures = snapshot.figures()
        self._progress.update(self._task, completed=snapshot.step, time_left=snapshot.time_left())

    def log(self, snapshot: Snapshot) -> None:
        """Draw the bar and the figures."""
        self.step(snapshot)

    def close(self) -> None:
        """Leave the last bar standing."""
        self._progress.stop()


def choose_display(console: Console) -> Display:
    """A bar on a terminal; lines elsewhere."""
    return Bar(console) if console.is_terminal else Lines(console)


class ShowProgress(TrainerCallback):  # type: ignore[misc]
    """Feeds a display from the trainer and the meters."""

    def __init__(self, display: Display, memory: MemoryMeter, clock: StepClock, predicted_bytes: int | None) -> None:
        self._display = display
        self._memory = memory
        self._clock = clock
        self._predicted_bytes = predicted_bytes
        self._loss: float | None = None
        self._learning_rate: float | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Show the step."""
        self._display.step(self._snapshot(state))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        """Show the figures that the trainer logs."""
        if logs and "loss" in logs:
            self._loss, self._learning_rate = logs["loss"], logs.get("learning_rate")
            self._display.log(self._snapshot(state))
        if logs and "eval_loss" in logs:
            self._display.log(replace(self._snapshot(state), eval_loss=logs["eval_loss"]))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Put the display away."""
        self._display.close()

    def _snapshot(self, state: TrainerState) -> Snapshot:
        seconds = self._clock.seconds_per_step
        return Snapshot(
            step=state.global_step,
            max_steps=state.max_steps,
            loss=self._loss,
            learning_rate=self._learning_rate,
            tokens_per_second=self._clock.tokens_per_second,
            now_bytes=self._memory.now_bytes,
            peak_bytes=self._memory.allocated_bytes,
            predicted_bytes=self._predicted_bytes,
            seconds_left=seconds * (state.max_steps - state.global_step) if seconds is not None else None,
        )
