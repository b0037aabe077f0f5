"""The memory of a step by tracing it, in another process: that needs torch, and takes seconds instead of microseconds.

The trace also answers for architectures that the closed form does not describe, from their `config.json` alone.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from planner.config.run_config import RunConfig
from planner.memory.estimate import Component, MemoryEstimate
from planner.memory.reserved import Phase
from planner.memory.verdict import usable_bytes
from profiles.errors import EnvironmentFault, InputError, RunError
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile
from profiles.trainer import TrainerProfile

TRACER = "calibration.exact"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TraceQuestion(_Message):
    """What is to be traced: a run on a card (None: a CPU), and the model by its profile or the folder of its config."""

    config: RunConfig
    gpu: GpuProfile | None
    trainer: str | TrainerProfile
    model: ModelProfile | None
    folder: Path | None
    usable_bytes: int


class Alive(_Message):
    """Tensors of one kind that are alive at the peak."""

    kind: str
    bytes: int
    why: str


class TraceAnswer(_Message):
    """What was found, in bytes, or the sentence that says why not."""

    phases: dict[Phase, int] = {}
    binding_phase: Phase = "load"
    reserved_bytes: int = 0
    process_bytes: int = 0
    interval_bytes: tuple[int, int] = (0, 0)
    alive: tuple[Alive, ...] = ()
    error: str | None = None
    hint: str | None = None


def traced_estimate(
    config: RunConfig,
    gpu: GpuProfile | None,
    trainer: str | TrainerProfile,
    *,
    model: ModelProfile | None = None,
    folder: Path | None = None,
    free_bytes: int | None = None,
) -> MemoryEstimate:
    """The memory of one step of `config`, traced operator by operator and replayed on a model of the allocator.

    Raises EnvironmentFault without the packages of the `train` extra, InputError for what cannot be traced, and
    RunError if the other process fails.
    """
    check_tracer()
    question = TraceQuestion(
        config=config,
        gpu=gpu,
        trainer=trainer,
        model=model,
        folder=folder,
        usable_bytes=usable_bytes(gpu, free_bytes),
    )
    process = subprocess.run(
        [sys.executable, "-m", TRACER],
        input=question.model_dump_json(),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        # bitsandbytes would load torch's compiler, which nothing here compiles with: a second of a processor.
        env=os.environ | {"TORCHDYNAMO_DISABLE": "1"},
    )
    try:
        answer = TraceAnswer.model_validate_json(process.stdout)
    except ValidationError as error:
        last_line = (process.stderr.strip().splitlines() or ["no output"])[-1]
        raise RunError(f"the trace failed: {last_line}") from error
    if answer.error is not None:
        raise InputError(answer.error, hint=answer.hint)
    return _estimate(answer)


def check_tracer(what: str = "a trace") -> None:
    """Raise EnvironmentFault where the packages are not installed that `what` needs."""
    missing = [name for name in ("torch", "transformers", "peft", "trl") if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentFault(f"{what} needs {', '.join(missing)}", hint="pip install 'fitune[train]'")


def _estimate(answer: TraceAnswer) -> MemoryEstimate:
    alive = tuple(Component(one.kind, one.bytes, one.why) for one in answer.alive)
    return MemoryEstimate(
        phases=answer.phases,
        binding_phase=answer.binding_phase,
        allocated_bytes=answer.phases[answer.binding_phase],
        reserved_bytes=answer.reserved_bytes,
        process_bytes=answer.process_bytes,
        interval_bytes=answer.interval_bytes,
        explain=lambda phase: alive if phase == answer.binding_phase else (),
    )
