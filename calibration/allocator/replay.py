"""A stream of events, replayed on the caching allocator: what it reserves, and the smallest card on which it runs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from calibration.allocator.caching import CachingAllocator, Peak, Settings
from calibration.allocator.memory_blocks import Block
from calibration.allocator.repeated_steps import step_bounds, with_steps
from calibration.allocator.stream import Allocation, Phase, Stream
from planner.memory.reserved import context_bytes
from planner.step.step_spec import StepSpec
from profiles.gpu import GpuProfile
from profiles.overheads import overheads


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The request that the allocator could not serve: its place in `events`, its phase, and what had been asked."""

    event: int
    phase: Phase
    allocation: Allocation


@dataclass(frozen=True, slots=True)
class Replay:
    """What became of a stream: peaks by phase, what is held at the end, all in bytes.

    `retries` counts how often the cache had to be emptied for a request. Phases behind `out_of_memory` are missing.
    """

    phases: dict[Phase, Peak]
    allocated_at_end: int
    reserved_at_end: int
    retries: int
    out_of_memory: OutOfMemory | None

    @property
    def peak(self) -> Peak:
        """The largest of the peaks: `max_memory_allocated` and `max_memory_reserved` of torch."""
        peaks = self.phases.values()
        return Peak(max((p.allocated for p in peaks), default=0), max((p.reserved for p in peaks), default=0))


def replay(stream: Stream, settings: Settings, steps: int | None = None) -> Replay:
    """Run a stream through the allocator; `steps` prolongs it to so many training steps (None: as traced)."""
    return _replay(stream if steps is None else with_steps(stream, steps), settings)


def replay_from_empty(stream: Stream, settings: Settings) -> int:
    """Bytes reserved after the last training step, if the cache of the allocator was emptied right before it."""
    allocator, blocks = CachingAllocator(settings), dict[int, Block]()
    start, end = step_bounds(stream)[-1]
    _run(allocator, stream, range(start), blocks)
    allocator.empty_cache()
    _run(allocator, stream, range(start, end), blocks)
    return allocator.reserved


def smallest_capacity(stream: Stream, settings: Settings, steps: int | None = None) -> int:
    """The least capacity, to 2 MiB, at which the stream runs to its end; with 2 MiB less it does not.

    It is below the peak without a limit, because a full card makes the allocator return what it caches. A larger card
    is not always as good: it returns its cache later, and by then a tensor may hold on to a part of it. Whether a
    stream runs on a given card, a replay with that capacity says. Garbage collection is left out.
    """
    whole = stream if steps is None else with_steps(stream, steps)
    grain = overheads().allocator.own_segment_rounding_bytes  # of segments and pages
    unlimited = replace(settings, capacity=None, garbage_collection_threshold=None)
    fails = max(whole.peaks().values(), default=0) // grain - 1
    runs = _replay(whole, unlimited).peak.reserved // grain
    while runs - fails > 1:
        middle = (fails + runs) // 2
        if _replay(whole, replace(unlimited, capacity=middle * grain)).out_of_memory:
            fails = middle
        else:
            runs = middle
    return runs * grain


def process_bytes(replayed: Replay, step: StepSpec, gpu: GpuProfile) -> int:
    """Bytes that the process holds on the card at its peak, as nvidia-smi shows them: the context and all reserved."""
    return replayed.peak.reserved + context_bytes(step, gpu)


def _replay(stream: Stream, settings: Settings) -> Replay:
    allocator = CachingAllocator(settings)
    blocks: dict[int, Block] = {}
    peaks: dict[Phase, Peak] = {}
    failed: OutOfMemory | None = None
    for phase, start, end in _phases(stream):
        stopped = _run(allocator, stream, range(start, end), blocks)
        peaks[phase] = _larger(peaks.get(phase, Peak(0, 0)), allocator.peak())
        if stopped is not None:
            failed = OutOfMemory(stopped, phase, stream.allocations[stream.events[stopped]])
            break
    return Replay(peaks, allocator.allocated, allocator.reserved, allocator.retries, failed)


def _run(allocator: CachingAllocator, stream: Stream, places: range, blocks: dict[int, Block]) -> int | None:
    """Replay the events at these places; the place at which memory ran out, or None."""
    events, allocations = stream.events, stream.allocations
    for place in places:
        event = events[place]
        if event < 0:
            block = blocks.pop(~event, None)
            if block is not None:
                allocator.free(block)
        elif allocations[event].bytes:  # torch gives an empty tensor no block
            block = allocator.allocate(allocations[event].bytes)
            if block is None:
                return place
            blocks[event] = block
    return None


def _phases(stream: Stream) -> Iterator[tuple[Phase, int, int]]:
    """Each phase with where it begins and ends in `events`."""
    ends = [position for position, _ in stream.phases[1:]] + [len(stream.events)]
    for (start, phase), end in zip(stream.phases, ends, strict=True):
        yield phase, start, end


def _larger(one: Peak, other: Peak) -> Peak:
    return Peak(max(one.allocated, other.allocated), max(one.reserved, other.reserved))
