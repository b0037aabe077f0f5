"""The memory of one training step: named components, the peak of each phase, and what the process holds."""

from dataclasses import dataclass
from typing import Literal

from planner.step import StepSpec
from profiles.errors import UnsupportedError
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile

Phase = Literal["load", "forward", "loss", "backward", "step", "evaluation"]


@dataclass(frozen=True, slots=True)
class Component:
    """Something that is alive at the peak: its bytes and the arithmetic behind them."""

    name: str
    bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What one step needs on one GPU, in bytes.

    `phases` maps each phase to its peak of allocated memory, `binding_phase` is the largest; `components` are alive in
    it and add up to `allocated_bytes`. `reserved_bytes` is what torch's caching allocator takes for that,
    `process_bytes` what nvidia-smi shows. `interval_bytes` is the range in which the measured process memory is expected.
    """

    components: tuple[Component, ...]
    phases: dict[Phase, int]
    binding_phase: Phase
    allocated_bytes: int
    reserved_bytes: int
    process_bytes: int
    interval_bytes: tuple[int, int]


def estimate(model: ModelProfile, step: StepSpec, gpu: GpuProfile | None) -> MemoryEstimate:
    """The memory of `step` on `gpu` (None: a CPU, where nothing but the live tensors counts)."""
    raise UnsupportedError("the memory model is being written")
