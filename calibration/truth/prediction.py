"""What is predicted for a measured run: by the closed form here, by tracing the step in `traced_prediction.py`."""

from dataclasses import dataclass

from planner.memory.estimate import estimate
from planner.memory.verdict import Verdict, usable_bytes, verdict
from planner.step.step_spec import StepSpec
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile

Question = tuple[ModelProfile, StepSpec, GpuProfile]
"""The model, the step and the card of a run."""


Refusal = str
"""Why there is no prediction, in a sentence."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Bytes that `max_memory_allocated` and `max_memory_reserved` of torch would report, and whether the run fits.

    `reserved_range` is what could be reserved in whatever order threads load the weights; None where none do.
    """

    allocated_bytes: int
    reserved_bytes: int
    verdict: Verdict
    reserved_range: tuple[int, int] | None = None


def closed_form(model: ModelProfile, step: StepSpec, gpu: GpuProfile) -> Prediction:
    """The estimate of the planner. Raises UnsupportedError for what it does not describe.

    On a full card the allocator gives back what it caches, so no run reserves more than there is.
    """
    predicted, usable = estimate(model, step, gpu), usable_bytes(gpu)
    reserved = max(predicted.allocated_bytes, min(predicted.reserved_bytes, usable - gpu.context_bytes))
    return Prediction(predicted.allocated_bytes, reserved, verdict(predicted, usable))
