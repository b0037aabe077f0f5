"""What the runs in the store have taught about a card and a method: by how much they differ from the formulas.

Each run is predicted anew by the formulas as they are now, so nothing is learned twice, and nothing from a formula that
has changed since.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from planner.config.run_config import RunConfig
from planner.memory.estimate import MemoryEstimate, estimate
from planner.records.run_record import CPU, Measured, StoredRun, method_of
from planner.speed.step_time import SpeedEstimate, step_time
from planner.step.resolve import resolve_step
from profiles.errors import InputError
from profiles.gpu import GpuProfile

NEWEST = 12
"""Runs of a card and a method that are looked at: older ones belong to older drivers and libraries."""

MOST_MEMORY_FACTOR = 2.0
MOST_SPEED_FACTOR = 5.0
"""A run that is farther from its prediction was another thing than the one that was predicted."""

TOLD = 0.005
"""A smaller difference is none to speak of."""

FULL_ROWS = 0.5
"""Speed is predicted for rows of `max_length`; runs whose rows were shorter than this share of it do not compare."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What some runs taught: factors on the predicted memory of the process and on the predicted speed."""

    num_runs: int = 0
    memory_factor: float = 1.0
    speed_factor: float = 1.0

    def corrected(self, memory: MemoryEstimate) -> MemoryEstimate:
        """`memory` with the process as the runs took it; the parts stay as the formulas have them."""
        return memory.scaled(self.memory_factor)

    def paced(self, speed: SpeedEstimate | None) -> SpeedEstimate | None:
        """`speed` as the runs had it."""
        return speed.scaled(self.speed_factor) if speed else None

    def words(self, kind: str, where: str) -> str | None:
        """A sentence about the runs of this `kind` that taught it, and `where` they were; None if there are none."""
        if not self.num_runs:
            return None
        if self.num_runs == 1:
            return f"1 earlier {kind} run on {where} is kept; from two on they are learned from"
        runs = f"{self.num_runs} earlier {kind} runs on {where}"
        found = [
            f"{abs(factor - 1):.1%} {'more' if factor > 1 else 'less'} {what}"
            for factor, what in ((self.memory_factor, "memory"), (self.speed_factor, "speed"))
            if abs(factor - 1) >= TOLD
        ]
        counted = " and ".join(found)
        return (
            f"after {runs}, {counted} than by the formulas is counted in" if found else f"{runs} bear the formulas out"
        )


NO_LESSON = Lesson()


@dataclass(frozen=True)
class Experience:
    """The runs that this machine knows of; `fault` says why they cannot be read."""

    runs: Sequence[StoredRun] = ()
    fault: str | None = None

    def lesson(self, gpu: GpuProfile | None, config: RunConfig) -> Lesson:
        """What they say about runs of the method of `config` on `gpu` (None: the CPU)."""
        key = (gpu.name if gpu else CPU, method_of(config))
        if key not in self._alike:
            return NO_LESSON
        if key not in self._lessons:
            self._lessons[key] = _learned(self._alike[key], gpu)
        return self._lessons[key]

    @cached_property
    def _alike(self) -> dict[tuple[str, str], list[StoredRun]]:
        found: dict[tuple[str, str], list[StoredRun]] = {}
        for run in self.runs:
            found.setdefault((run.card, method_of(run.record.config)), []).append(run)
        return found

    @cached_property
    def _lessons(self) -> dict[tuple[str, str], Lesson]:
        return {}


NO_EXPERIENCE = Experience()


def lesson_words(experience: Experience, gpu: GpuProfile | None, config: RunConfig) -> str | None:
    """What `experience` says of such runs on `gpu`, in a sentence; None if it has none."""
    where = gpu.name if gpu else "this CPU"
    return experience.fault or experience.lesson(gpu, config).words(method_of(config), where)


def agreed(ratios: Sequence[float]) -> float:
    """The ratio of measured to predicted that all but one of the runs bear out, drawn towards 1 for how few they are.

    It is the median of the logarithms after leaving out the run that moves it farthest from no correction, so no single
    run decides anything. Runs on the other side of no correction, or beyond twice the correction, are not counted, and
    so change nothing. Of that, n runs count n / (n + 1): as if a card's own offset and the scatter of its runs were
    equally large.
    """
    logs = [math.log(ratio) for ratio in ratios]
    rough = _borne_out(logs)
    counted = [log for log in logs if abs(log - rough) <= abs(rough)]
    return math.exp(_borne_out(counted) * len(counted) / (len(counted) + 1))


def _borne_out(logs: Sequence[float]) -> float:
    """The median nearest to 0 that is left when one is taken away; 0 for a single one."""
    if len(logs) < 2:
        return 0.0
    without_one = [median([*logs[:i], *logs[i + 1 :]]) for i in range(len(logs))]
    if min(without_one) <= 0 <= max(without_one):
        return 0.0
    return min(without_one, key=abs)


def _learned(runs: Sequence[StoredRun], gpu: GpuProfile | None) -> Lesson:
    memory, speed = [], []
    for run in runs[-NEWEST:]:
        compared = ratios(run, gpu)
        if compared is None:
            continue
        memory_ratio, speed_ratio = compared
        if memory_ratio is not None and 1 / MOST_MEMORY_FACTOR <= memory_ratio <= MOST_MEMORY_FACTOR:
            memory.append(memory_ratio)
        if speed_ratio is not None and 1 / MOST_SPEED_FACTOR <= speed_ratio <= MOST_SPEED_FACTOR:
            speed.append(speed_ratio)
    return Lesson(len(memory), agreed(memory), agreed(speed))


def ratios(run: StoredRun, gpu: GpuProfile | None) -> tuple[float | None, float | None] | None:
    """Measured over predicted memory and speed of a run on `gpu`; None for what does not compare.

    A run that failed may have ended before its peak. Nothing of it compares, nor of one on several cards, or of a step
    that the closed form does not describe.
    """
    record, model = run.record, run.shape
    config = record.config
    if model is None or config.num_gpus > 1 or record.result.status == "failed" or not record.result.steps:
        return None
    try:
        step = resolve_step(config, model, gpu)
        memory = estimate(model, step, gpu)
        speed = step_time(model, step, gpu, config.gradient_accumulation_steps)
    except InputError:
        return None
    full_step = step.num_tokens * config.gradient_accumulation_steps
    return _memory_ratio(record.measured, memory), _speed_ratio(record.measured, speed, full_step)


def _memory_ratio(measured: Measured, memory: MemoryEstimate) -> float | None:
    """Of the process, or where the driver does not tell that, of the largest share of it that is known."""
    for name in ("process_bytes", "reserved_bytes", "allocated_bytes"):
        if found := getattr(measured, name):
            return float(found / getattr(memory, name))
    return None


def _speed_ratio(measured: Measured, speed: SpeedEstimate | None, full_step: int) -> float | None:
    """Of a run whose steps had about as many tokens as a `full_step`."""
    if speed is None or not measured.tokens_per_second or (measured.tokens_per_step or 0) < FULL_ROWS * full_step:
        return None
    return measured.tokens_per_second / speed.tokens_per_second
