"""Training steps in a stream of events, and a stream that goes on for more of them than were traced."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from calibration.allocator.stream import Phase, Stream


def step_bounds(stream: Stream) -> list[tuple[int, int]]:
    """Where in `events` each training step begins and ends: from a forward pass to the end of an optimizer step."""
    bounds: list[tuple[int, int]] = []
    start: int | None = None
    previous: Phase | None = None
    for position, phase in [*stream.phases, (len(stream.events), None)]:
        if previous == "step" and start is not None:
            bounds.append((start, position))
            start = None
        if phase == "forward" and start is None:
            start = position
        previous = phase
    return bounds


def with_steps(stream: Stream, steps: int) -> Stream:
    """The stream with its last training step repeated until there are `steps` of them; itself if it has as many.

    A repetition leaves as much memory as it found. What the step leaves and nothing in it replaces, such as the
    optimizer states of a first step, is there already and is not asked for again; what it frees of an earlier step and
    does not leave itself is gone already.
    """
    bounds = step_bounds(stream)
    if not bounds and steps:
        raise ValueError(f"the stream has no training step that could become {steps}; trace one to its end")
    if len(bounds) >= steps:
        return stream
    start, end = bounds[-1]
    longer = Stream(list(stream.allocations), stream.events[:end], [entry for entry in stream.phases if entry[0] < end])
    step = _Step(stream.events[start:end], stream)
    latest: dict[int, int] = {}
    for _ in range(steps - len(bounds)):
        latest = _append(longer, _by_phase(stream, start, end), step, latest)
    for phase, events in _by_phase(stream, end, len(stream.events)):
        longer.begin(phase)
        longer.events += [event if event >= 0 else ~latest.get(~event, ~event) for event in events]
    return longer


class _Step:
    """What one step frees of those before it, and what it leaves to those behind it."""

    def __init__(self, events: Sequence[int], stream: Stream) -> None:
        begun = {event for event in events if event >= 0}
        ended = {~event for event in events if event < 0}
        left = defaultdict[tuple[str, str, int], list[int]](list)
        for index in sorted(begun - ended, reverse=True):
            left[_signature(stream, index)].append(index)
        self.successor: dict[int, int] = {}
        for index in sorted(ended - begun):
            alike = left[_signature(stream, index)]
            if alike:
                self.successor[index] = alike.pop()
        self.lasting = {index for alike in left.values() for index in alike}


def _signature(stream: Stream, index: int) -> tuple[str, str, int]:
    allocation = stream.allocations[index]
    return allocation.module, allocation.name, allocation.bytes


def _append(
    longer: Stream, phases: Iterator[tuple[Phase, list[int]]], step: _Step, before: dict[int, int]
) -> dict[int, int]:
    """Add the step once more. Both dictionaries lead from its allocations to those of one repetition."""
    now: dict[int, int] = {}
    for phase, events in phases:
        longer.begin(phase)
        for event in events:
            if event >= 0 and event not in step.lasting:
                now[event] = longer.allocate(longer.allocations[event])
            elif event < 0 and ~event in now:
                longer.free(now[~event])
            elif event < 0 and ~event in step.successor:
                left = step.successor[~event]
                longer.free(before.get(left, left))
    return now


def _by_phase(stream: Stream, start: int, end: int) -> Iterator[tuple[Phase, list[int]]]:
    """The events from `start` to `end`, phase by phase."""
    phases = [entry for entry in stream.phases if start <= entry[0] < end]
    ends = [position for position, _ in phases[1:]] + [end]
    for (first, phase), last in zip(phases, ends, strict=False):  # no phases have one end
        yield phase, stream.events[first:last]
