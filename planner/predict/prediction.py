"""What is predicted of one given configuration: its memory, whether that fits, and its speed."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from planner.config.run_config import RunConfig
from planner.memory.estimate import MemoryEstimate, estimate
from planner.memory.verdict import Verdict, usable_bytes, verdict
from planner.predict.traced import traced_estimate
from planner.records.experience import NO_EXPERIENCE, NO_LESSON, Experience, Lesson
from planner.search.request import Request
from planner.search.space import groups, openings
from planner.speed.step_time import SpeedEstimate, step_time
from planner.step.cluster import ONE_CARD, Cluster
from planner.step.resolve import resolve_step
from planner.step.step_spec import StepSpec
from planner.units import format_bytes
from profiles.errors import UnsupportedError
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile
from profiles.residuals import Evidence, residuals
from profiles.trainer import TrainerProfile, traits_of

if TYPE_CHECKING:
    from planner.picture.shapes import Picture


OWN_TRAINER = "fitune"

Tracing = Callable[[str | None], AbstractContextManager[object]]
"""What surrounds a trace, which takes seconds; it is told why there is one, None if it was asked for."""


def untold(why: str | None) -> AbstractContextManager[object]:
    """Nothing around a trace."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Target:
    """Where a configuration runs: the model's shape, the card (None: the CPU), and what is free on it now, if known.

    An architecture that is not described has no `model`, but a `folder` with its config.json; `undescribed` says what
    stands against a description.
    """

    model: ModelProfile | None
    gpu: GpuProfile | None
    free_bytes: int | None = None
    trainer: str | TrainerProfile = OWN_TRAINER
    folder: Path | None = None
    undescribed: str | None = None
    experience: Experience = NO_EXPERIENCE
    cluster: Cluster = ONE_CARD

    @property
    def name(self) -> str:
        """The model's Hub id, or its folder."""
        return self.model.hf_id if self.model else str(self.folder)

    @property
    def trainer_name(self) -> str:
        """Whose step it is."""
        return traits_of(self.trainer).name


@dataclass(frozen=True, slots=True)
class Prediction:
    """The memory of a configuration in bytes, the verdict on `usable_bytes`, and its speed if the card's is known.

    `by` says what predicted the memory.
    """

    config: RunConfig
    target: Target
    estimate: MemoryEstimate
    usable_bytes: int
    verdict: Verdict
    speed: SpeedEstimate | None
    lesson: Lesson = NO_LESSON
    by: Literal["closed form", "trace"] = "closed form"

    @property
    def evidence(self) -> Evidence | None:
        """What was measured that is near to this; None for a CPU, where all live tensors are counted by tests."""
        return residuals().evidence(self.target.gpu, self.config.method) if self.target.gpu else None

    @property
    def caveat(self) -> str | None:
        """What stands against a plain yes or no beside the memory; of what is known whole, nothing."""
        return None

    @property
    def picture(self) -> "Picture":
        """The memory of each phase against the card."""
        from planner.picture.memory_picture import memory_picture

        return memory_picture(self.estimate, self.usable_bytes)

    @property
    def caption(self) -> str:
        """The words above the picture."""
        gpu = self.target.gpu.name if self.target.gpu else "this CPU"
        size = f"{format_bytes(self.estimate.process_bytes)} of {format_bytes(self.usable_bytes)}"
        return f"{self.verdict}: {self.target.name} on {gpu}, {self.config.method}, {size}"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from planner.picture.svg import figure

        return figure(self.caption, self.picture)

    @property
    def figures(self) -> dict[str, object]:
        """What the trainer prints beside the measured figures, as `planner.records.run_record.Prediction` reads it."""
        return {
            "allocated_bytes": self.estimate.allocated_bytes,
            "reserved_bytes": self.estimate.reserved_bytes,
            "process_bytes": self.estimate.process_bytes,
            "interval_bytes": self.estimate.interval_bytes,
            "tokens_per_second": self.speed.tokens_per_second if self.speed else None,
        }


def predict(config: RunConfig, target: Target) -> Prediction:
    """What `config` needs and does on `target`. Raises UnsupportedError for what the memory model does not describe."""
    assert target.model is not None, "only a trace answers for what is not described"
    step = resolve_step(config, target.model, target.gpu, target.trainer)
    lesson = target.experience.lesson(target.gpu, config) if target.trainer == OWN_TRAINER else NO_LESSON
    memory = lesson.corrected(estimate(target.model, step, target.gpu))
    usable = usable_bytes(target.gpu, target.free_bytes)
    speed = lesson.paced(_speed(config, target, step))
    return Prediction(config, target, memory, usable, verdict(memory, usable), speed, lesson)


def predict_traced(config: RunConfig, target: Target) -> Prediction:
    """The same by tracing the step, in seconds; without a speed where the architecture is not described.

    Raises EnvironmentFault without the packages for it, InputError for what cannot be traced.
    """
    memory = traced_estimate(
        config, target.gpu, target.trainer, model=target.model, folder=target.folder, free_bytes=target.free_bytes
    )
    usable = usable_bytes(target.gpu, target.free_bytes)
    speed = None
    if target.model is not None:
        step = resolve_step(config, target.model, target.gpu, target.trainer)
        speed = _speed(config, target, step)
    return Prediction(config, target, memory, usable, verdict(memory, usable), speed, by="trace")


def _speed(config: RunConfig, target: Target, step: StepSpec) -> SpeedEstimate | None:
    assert target.model is not None
    network = target.cluster.network_bytes_per_s
    return step_time(target.model, step, target.gpu, config.gradient_accumulation_steps, network)


def predict_either_way(
    config: RunConfig, target: Target, *, exact: bool = False, tracing: Tracing = untold
) -> Prediction:
    """By the closed form, or by a trace if that is asked for or the only way. Raises as `predict_traced` does."""
    why = target.undescribed
    if target.model is not None and not exact:
        try:
            return predict(config, target)
        except UnsupportedError as error:
            why = error.message
    with tracing(why):
        return predict_traced(config, target)


def usual_config(request: Request) -> RunConfig:
    """The configuration that a request means before anything is searched.

    Wanted length and rank, least lossy base, one row at a time, each layer checkpointed; what the user pinned stays.
    """
    group = next(groups(request, *openings(request)[0]))
    return next((row[0] for row in group.rows if not row[0].checkpoint_offload), group.rows[0][0])
