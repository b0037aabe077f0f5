"""Measured runs beside what the closed form says of them: published ones, and records of `fitune calibrate`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """A measured run, the step that it took on its card, and what is predicted for it.

    `group` is who measured it, or the file of its record; `exact` tells that everything is stated. Sizes are None where
    they were not measured, as in runs that met the end of memory.
    """

    id: str
    group: str
    record: str
    method: str
    num_gpus: int
    exact: bool
    ran: bool
    allocated_bytes: int | None
    reserved_bytes: int | None
    step: StepSpec
    gpu: GpuProfile
    memory: MemoryEstimate

    @property
    def share(self) -> float | None:
        """Measured less predicted reserved memory over the activations; None where it was not measured."""
        if self.reserved_bytes is None:
            return None
        return (self.reserved_bytes - self.memory.reserved_bytes) / self.memory.activation_bytes

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
            memory = estimate(model, step, gpu)
        except InputError:
            continue
        found.append(
            JudgedRun(
                id=run.id,
                group=run.harness,
                record=f"{RUNS.name}: {run.harness}",
                method=run.method,
                num_gpus=run.num_gpus,
                exact=run.grade == "A",
                ran=run.fits == "yes",
                allocated_bytes=run.allocated_bytes,
                reserved_bytes=run.reserved_bytes,
                step=step,
                gpu=gpu,
                memory=memory,
            )
        )
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
        gpu = find_gpu(point.config.gpu)
        found.append(
            JudgedRun(
                id=point.id,
                group=file,
                record=file,
                method=method_of_step(point.step),
                num_gpus=1,
                exact=True,
                ran=True,
                allocated_bytes=measured.allocated_bytes,
                reserved_bytes=measured.reserved_bytes,
                step=point.step,
                gpu=gpu,
                memory=estimate(point.model, point.step, gpu),
            )
        )
    return found
