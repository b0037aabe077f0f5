"""What is predicted of one given configuration: its memory, whether that fits, and its speed."""

from dataclasses import dataclass

from planner.memory.estimate import MemoryEstimate, estimate
from planner.request import Request
from planner.resolve import resolve_step
from planner.run_config import RunConfig
from planner.space import groups, openings
from planner.speed import SpeedEstimate, step_time
from planner.verdict import Verdict, usable_bytes, verdict
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile

OWN_TRAINER = "fitune"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a configuration runs: the model's shape, the card (None: the CPU), and what is free on it now, if known."""

    model: ModelProfile
    gpu: GpuProfile | None
    free_bytes: int | None = None
    trainer: str = OWN_TRAINER


@dataclass(frozen=True, slots=True)
class Prediction:
    """The memory of a configuration in bytes, the verdict on `usable_bytes`, and its speed if the card's is known."""

    config: RunConfig
    estimate: MemoryEstimate
    usable_bytes: int
    verdict: Verdict
    speed: SpeedEstimate | None

    @property
    def figures(self) -> dict[str, object]:
        """What the trainer prints beside the measured figures, as `trainer.record.Prediction` reads it."""
        return {
            "allocated_bytes": self.estimate.allocated_bytes,
            "reserved_bytes": self.estimate.reserved_bytes,
            "process_bytes": self.estimate.process_bytes,
            "interval_bytes": self.estimate.interval_bytes,
            "tokens_per_second": self.speed.tokens_per_second if self.speed else None,
        }


def predict(config: RunConfig, target: Target) -> Prediction:
    """What `config` needs and does on `target`. Raises UnsupportedError for what the memory model does not describe."""
    step = resolve_step(config, target.model, target.gpu, target.trainer)
    memory = estimate(target.model, step, target.gpu)
    usable = usable_bytes(target.gpu, target.free_bytes)
    speed = step_time(target.model, step, target.gpu, config.gradient_accumulation_steps)
    return Prediction(config, memory, usable, verdict(memory, usable), speed)


def usual_config(request: Request) -> RunConfig:
    """The configuration that a request means before anything is searched.

    Wanted length and rank, least lossy base, one row at a time, each layer checkpointed; what the user pinned stays.
    """
    group = next(groups(request, *openings(request)[0]))
    return next((row[0] for row in group.rows if not row[0].checkpoint_offload), group.rows[0][0])
