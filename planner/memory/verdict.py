"""Whether an estimate fits: the range of memory that a run may take, against the memory that it may have."""

from typing import Literal

from planner.memory.estimate import MemoryEstimate
from profiles.errors import InputError
from profiles.gpu import GpuProfile

Verdict = Literal["fits", "tight", "no"]
"""fits: even the high end of the range has room; tight: only the low end has; no: not even that."""


def usable_bytes(gpu: GpuProfile | None, free_bytes: int | None = None, reserved_bytes: int = 0) -> int:
    """Bytes that the training process may take, its CUDA context included.

    They are what torch sees of the card, or less where another process holds some (`free_bytes`, read from the live
    machine), minus `reserved_bytes` that the user keeps for something else. A CPU has only `free_bytes`: raises
    InputError without.
    """
    if gpu is None and free_bytes is None:
        raise InputError("the memory of a CPU is not known", hint="run on the machine itself, or name a GPU")
    limits = [limit for limit in (gpu.memory_bytes if gpu else None, free_bytes) if limit is not None]
    return min(limits) - reserved_bytes


def verdict(estimate: MemoryEstimate, usable: int) -> Verdict:
    """How the range of process memory lies to the `usable` bytes."""
    low, high = estimate.interval_bytes
    if high <= usable:
        return "fits"
    return "tight" if low <= usable else "no"


def missing_bytes(estimate: MemoryEstimate, usable: int) -> int:
    """Bytes that would have to be free for the verdict `fits`; 0 where it fits."""
    return max(0, estimate.interval_bytes[1] - usable)
