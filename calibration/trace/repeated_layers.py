"""From a trace with few layers to that of the whole model: equal layers do equal things.

Of three equal units of layers in a row (a unit is one period of the pattern), the middle one is repeated. Each event of
its run is written once for each unit left out: in the order of the layers, or against it in the backward pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

from calibration.allocator.stream import Allocation, Stream

BEFORE, REPEATED, AFTER = -1, 0, 1


class UnevenLayersError(Exception):
    """Layers that look equal and do not do the same."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Equal layers in a row: the path of their list, how many units are left out, and which one is repeated instead.

    A unit has `period` layers; the repeated one begins at `first`, and like units lie before and after it.
    """

    path: str
    left_out: int
    first: int
    period: int

    def unit(self, layer: str | None) -> int | None:
        """BEFORE, REPEATED or AFTER for a layer by its path; None for any other."""
        if layer is None:
            return None
        path, _, number = layer.rpartition(".")
        if path != self.path and not path.endswith(f".{self.path}"):
            return None
        unit = (int(number) - self.first) // self.period
        return unit if unit in (BEFORE, REPEATED, AFTER) else None


@dataclass(slots=True)
class Trace:
    """A stream, the layer inside of which each allocation was made, and the last layer at work at each event.

    `parts` has the layers and bytes of what was joined into an allocation: it grows with the number of layers.
    """

    stream: Stream
    allocation_layers: list[str | None]
    event_layers: list[str | None]
    parts: dict[int, list[tuple[str | None, int]]] = field(default_factory=dict)


def with_all_layers(trace: Trace, stacks: list[Stack]) -> Trace:
    """The trace of the whole model. Raises UnevenLayersError if units differ in what they do."""
    for stack in stacks:
        trace = _Repetition(trace, stack).run()
    return trace


class _Repetition:
    """The repetition of the units of one stack."""

    def __init__(self, trace: Trace, stack: Stack) -> None:
        self._old = trace
        self._stack = stack
        self._units = [stack.unit(layer) for layer in trace.allocation_layers]
        self._owned = {
            unit: [index for index, of in enumerate(self._units) if of == unit] for unit in (BEFORE, REPEATED, AFTER)
        }
        self._check()
        self._of_run = self._made_in_run()
        self._position = {index: at for owned in self._owned.values() for at, index in enumerate(owned)}
        self._handed_on = self._find_handed_on()
        self._new = Trace(Stream(), [], [])
        self._index: dict[tuple[int, int], int] = {}

    def run(self) -> Trace:
        """Write all events anew, those of the repeated unit several times."""
        stream = self._old.stream
        phases = list(stream.phases)
        position = 0
        keys = zip(self._old.event_layers, stream.phase_of_events(), strict=True)
        for (unit, phase), run in groupby(keys, key=lambda key: (self._stack.unit(key[0]), key[1][1])):
            events = [event for _, (event, _) in run]
            if phases and phases[0][0] <= position:
                phases.pop(0)
            self._new.stream.begin(phase)
            copies = range(self._stack.left_out + 1) if unit == REPEATED else range(1)
            for copy in reversed(copies) if phase == "backward" else copies:
                for at, event in enumerate(events):
                    self._write(event, unit, copy, self._old.event_layers[position + at])
            position += len(events)
        return self._new

    def _write(self, event: int, unit: int | None, copy: int, layer: str | None) -> None:
        if event >= 0:
            self._allocate(event, copy, layer)
            return
        for index, of in self._ended(~event, unit, copy):
            new = self._index.pop((index, of), None)
            if new is not None:
                self._new.stream.free(new)
                self._new.event_layers.append(self._renamed_layer(layer, unit, copy))

    def _allocate(self, index: int, copy: int, layer: str | None) -> None:
        old = self._old.stream.allocations[index]
        unit = REPEATED if index in self._of_run else self._units[index]
        of = copy if unit == REPEATED else 0
        owner = self._old.allocation_layers[index]
        renamed = self._renamed_layer(owner, unit, of)
        name, module = (_moved(text, owner, renamed) for text in (old.name, old.module))
        parts = self._more_parts(index) if unit is None else []
        size = old.bytes + sum(part for _, part in parts)
        new = self._index[index, of] = self._new.stream.allocate(replace(old, bytes=size, name=name, module=module))
        if index in self._old.parts:
            self._new.parts[new] = self._old.parts[index] + parts
        self._new.allocation_layers.append(renamed)
        self._new.event_layers.append(self._renamed_layer(layer, self._stack.unit(layer), copy))

    def _more_parts(self, index: int) -> list[tuple[str | None, int]]:
        """What is joined into an allocation outside of the layers, of the units that were left out."""
        of_unit = [part for part in self._old.parts.get(index, ()) if self._stack.unit(part[0]) == REPEATED]
        return of_unit * self._stack.left_out

    def _ended(self, index: int, unit: int | None, copy: int) -> Iterator[tuple[int, int]]:
        """The allocations, with their copies, that end where `index` ended in the trace that is repeated."""
        last = self._stack.left_out
        owner = self._units[index]
        if index in self._of_run:
            yield from ((index, of) for of in ([copy] if unit == REPEATED else range(last + 1)))
        elif owner is None:
            yield index, 0
        elif unit == REPEATED:
            # In the first copy the neighbor before is the one that was traced, in the last the neighbor after.
            neighbor = copy + owner
            if owner != REPEATED and not 0 <= neighbor <= last:
                yield index, 0
            elif owner == REPEATED or index in self._handed_on:
                yield self._owned[REPEATED][self._position[index]], neighbor
            elif copy == 0:
                yield index, 0
        elif owner != REPEATED:
            yield index, 0
        elif self._twin(index, -(unit or 0)) in self._handed_on and unit is not None:
            yield index, last if unit == AFTER else 0
        else:
            yield from ((index, of) for of in range(last + 1))

    def _twin(self, index: int, unit: int) -> int:
        """The allocation of another unit that does what `index` does in its own."""
        return self._owned[unit][self._position[index]]

    def _made_in_run(self) -> set[int]:
        """Allocations that happened during or after a layer of the repeated unit, but not inside of it."""
        begun = zip(self._old.event_layers, self._old.stream.events, strict=True)
        return {
            event
            for layer, event in begun
            if event >= 0 and self._stack.unit(layer) == REPEATED and self._units[event] != REPEATED
        }

    def _find_handed_on(self) -> set[int]:
        """Allocations that a unit hands to the next, which frees them: those of neighbors that end in the repeated."""
        ended = zip(self._old.event_layers, self._old.stream.events, strict=True)
        return {
            ~event
            for layer, event in ended
            if event < 0 and self._stack.unit(layer) == REPEATED and self._units[~event] in (BEFORE, AFTER)
        }

    def _check(self) -> None:
        """Raise UnevenLayersError unless the three units make the same tensors in the same order."""
        made = [[self._form(index) for index in owned] for owned in self._owned.values()]
        if not made[0] == made[1] == made[2]:
            raise UnevenLayersError(f"layers of {self._stack.path} that look equal make different tensors")

    def _form(self, index: int) -> tuple[int, str, str]:
        allocation: Allocation = self._old.stream.allocations[index]
        owner = self._old.allocation_layers[index]
        name = allocation.name.replace(owner or "", "") if allocation.name.startswith(owner or " ") else allocation.name
        return allocation.bytes, name, allocation.phase

    def _renamed_layer(self, layer: str | None, unit: int | None, copy: int) -> str | None:
        """The path of a layer in the whole model."""
        if layer is None or unit not in (REPEATED, AFTER):
            return layer
        path, _, number = layer.rpartition(".")
        moved_by = copy if unit == REPEATED else self._stack.left_out
        return f"{path}.{int(number) + moved_by * self._stack.period}"


def _moved(text: str, layer: str | None, renamed: str | None) -> str:
    """A name that begins with the path of a layer, with the path that the layer has in the whole model."""
    return f"{renamed}{text[len(layer) :]}" if layer and f"{text}.".startswith(f"{layer}.") else text
