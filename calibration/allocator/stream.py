"""What a training step asked of the memory allocator, in order: the common language of the trace and the allocator."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from planner.memory.tape import rounded

Phase = Literal["load", "forward", "backward", "step", "evaluation"]

Kind = Literal[
    "weight",
    "quantized weight",
    "adapter",
    "buffer",
    "batch",
    "workspace",
    "gradient",
    "optimizer state",
    "saved tensor",
    "temporary",
    "workspace",
]
"""A saved tensor outlives the forward pass, or the part of it that a checkpoint repeats; what autograd frees during the
backward pass is temporary."""


@dataclass(slots=True)
class Allocation:
    """One block of memory: its bytes as asked for, and who asked.

    `name` is a parameter's name, or else the operator that made the tensor; `module` is the path of the module in whose
    forward or backward pass that was.
    """

    bytes: int
    name: str
    module: str
    phase: Phase
    kind: Kind


@dataclass(slots=True)
class Stream:
    """Allocations and frees in the order of time.

    An event is the index of the allocation that begins, or the complement (`~index`) of the one that ends. `phases` are
    the positions in `events` at which a phase begins.
    """

    allocations: list[Allocation] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    phases: list[tuple[int, Phase]] = field(default_factory=list)

    def begin(self, phase: Phase) -> None:
        """Note that what follows belongs to `phase`."""
        if not self.phases or self.phases[-1][1] != phase:
            self.phases.append((len(self.events), phase))

    def allocate(self, allocation: Allocation) -> int:
        """Add the beginning of `allocation`; its index."""
        self.allocations.append(allocation)
        self.events.append(len(self.allocations) - 1)
        return len(self.allocations) - 1

    def free(self, index: int) -> None:
        """Add the end of the allocation with this index."""
        self.events.append(~index)

    def phase_of_events(self) -> Iterator[tuple[int, Phase]]:
        """Every event with its phase."""
        ends = [position for position, _ in self.phases[1:]] + [len(self.events)]
        for (start, phase), end in zip(self.phases, ends, strict=True):
            for event in self.events[start:end]:
                yield event, phase

    def peaks(self) -> dict[Phase, int]:
        """The most bytes alive in each phase, in blocks of the CUDA allocator."""
        sizes = [rounded(allocation.bytes) for allocation in self.allocations]
        now, peaks = 0, dict[Phase, int]()
        for event, phase in self.phase_of_events():
            now += sizes[event] if event >= 0 else -sizes[~event]
            peaks[phase] = max(now, peaks.get(phase, 0))
        return peaks

    def alive_at_peak(self, phase: Phase) -> list[Allocation]:
        """What is alive at the peak of `phase`."""
        now, peak, at = 0, -1, 0
        for position, (event, of) in enumerate(self.phase_of_events()):
            size = rounded(self.allocations[event if event >= 0 else ~event].bytes)
            now += size if event >= 0 else -size
            if of == phase and now > peak:
                peak, at = now, position
        return [self.allocations[index] for index in _alive(self.events[: at + 1])]


def _alive(events: Iterable[int]) -> Iterable[int]:
    """Indices of the allocations that have begun and not ended."""
    alive: dict[int, None] = {}
    for event in events:
        if event >= 0:
            alive[event] = None
        else:
            del alive[~event]
    return alive
