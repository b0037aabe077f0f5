"""Measured runs beside what the closed form says of them: published ones, and records of `fitune calibrate`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from calibration.measuring.measurement import Measurement
from calibration.truth.measured_runs import MeasuredRun
from calibration.truth.measured_step import question
from planner.memory.estimate import MemoryEstimate, estimate
from planner.memory.reserved import attention_kind, method_of_step, process_memory
from planner.step.step_spec import StepSpec
from profiles.errors import InputError
from profiles.fitted import AttentionKind
from profiles.gpu import GpuProfile
from profiles.gpu_catalog import find_gpu
from profiles.residuals import Residuals

RUNS = Path(__file__).parent.parent / "truth" / "runs.csv"


class Run(Protocol):
    """What is to be known of a run, whoever measured it."""

    @property
    def id(self) -> str: ...  # noqa: D102 - as in MeasuredRun
    @property
    def harness(self) -> str: ...  # noqa: D102
    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def num_gpus(self) -> int: ...  # noqa: D102
    @property
    def grade(self) -> Literal["A", "B"]: ...  # noqa: D102
    @property
    def fits(self) -> Literal["yes", "no"]: ...  # noqa: D102
    @property
    def allocated_bytes(self) -> int | None: ...  # noqa: D102
    @property
    def reserved_bytes(self) -> int | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A run of our own trainer on one card, all of it stated; `harness` is the file of its record."""

    id: str
    harness: str
    method: str
    allocated_bytes: int | None
    reserved_bytes: int | None
    num_gpus: int = 1
    grade: Literal["A", "B"] = "A"
    fits: Literal["yes", "no"] = "yes"


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """A measured run, the step that it took on its card, and what is predicted for it."""

    run: Run
    step: StepSpec
    gpu: GpuProfile
    memory: MemoryEstimate

    @property
    def record(self) -> str:
        """Where it stands."""
        return self.run.harness if isinstance(self.run, RecordedRun) else f"{RUNS.name}: {self.run.harness}"

    @property
    def share(self) -> float | None:
        """Measured less predicted reserved memory over the activations; None where it was not measured."""
        if self.run.reserved_bytes is None:
            return None
        return (self.run.reserved_bytes - self.memory.reserved_bytes) / self.memory.activation_bytes

    @property
    def attention(self) -> AttentionKind:
        """The kind of attention that it ran with."""
        return attention_kind(self.step)

    def range_with(self, spreads: Residuals, gpu: GpuProfile | None = None) -> tuple[int, int]:
        """Where the process is expected with these `spreads`, on its card or on another one."""
        memory = self.memory
        found = process_memory(
            memory.allocated_bytes, memory.reserved_bytes, memory.activation_bytes, self.step, gpu or self.gpu, spreads
        )
        return found.interval_bytes


def published_runs(runs: Iterable[MeasuredRun]) -> list[JudgedRun]:
    """Those published runs that the closed form describes."""
    found = []
    for run in runs:
        try:
            model, step, gpu = question(run)
            found.append(JudgedRun(run, step, gpu, estimate(model, step, gpu)))
        except InputError:
            continue
    return found


def recorded_runs(measurements: Sequence[Measurement], file: str) -> list[JudgedRun]:
    """Those measurements of `file` in which our trainer ran on a whole card.

    Within a cap the allocator gives back what it would keep, and another trainer's step is another one.
    """
    found = []
    for one in measurements:
        point, measured = one.point, one.attempt.measured
        if one.attempt.outcome != "ran" or measured is None or point.cap_bytes or point.trainer != "fitune":
            continue
        if point.config.gpu is None or not measured.reserved_bytes:
            continue
        gpu, step = find_gpu(point.config.gpu), point.step
        method = method_of_step(step)
        run = RecordedRun(point.id, file, method, measured.allocated_bytes, measured.reserved_bytes)
        found.append(JudgedRun(run, step, gpu, estimate(point.model, step, gpu)))
    return found
