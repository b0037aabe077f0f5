"""The memory of a step against the card: a bar for the peak of each phase, and one for the process."""

from collections.abc import Iterable, Iterator
from typing import get_args

from planner.memory.estimate import Component, MemoryEstimate
from planner.memory.reserved import Phase
from planner.picture.shapes import Ink, Line, Picture, Rect, Shape, Text, text_width
from planner.units import format_bytes

KINDS: tuple[tuple[Ink, str, tuple[str, ...]], ...] = (
    ("optimizer", "optimizer", ("optimizer",)),
    ("gradients", "gradients", ("gradient",)),
    ("adapter", "adapter", ("adapter",)),
    ("stored", "stored activations", ("stored", "saved")),
    ("work", "at work", ("at work", "temporary")),
    ("weights", "weights", ("weight", "loaded")),
)
"""Ink, name in the legend, and words in the names of the components that belong there; the first match counts."""

OTHER: tuple[Ink, str] = ("other", "other tensors")
ORDER: tuple[Ink, ...] = ("weights", "adapter", "optimizer", "gradients", "stored", "work", "other")
NAMES: dict[Ink, str] = {ink: name for ink, name, _ in KINDS} | dict([OTHER])
LEGEND: dict[Ink, str] = {ink: NAMES[ink] for ink in ORDER} | {
    "reserve": "allocator reserve",
    "context": "CUDA context",
}

BAR, GAP, TOP = 20, 9, 30
MARGIN = 4


def memory_picture(estimate: MemoryEstimate, usable_bytes: int, width: int = 720) -> Picture:
    """The peaks of `estimate` beside the `usable_bytes` of the card, `width` pixels wide."""
    rows = list(_rows(estimate))
    left = max(text_width(name, bold=True) for name, _, _ in rows) + 12
    right = width - text_width("000.0 GiB") - MARGIN
    scale = (right - left) / max(usable_bytes, estimate.interval_bytes[1])
    bottom = TOP + len(rows) * (BAR + GAP)
    shapes: list[Shape] = []
    for number, (name, parts, total) in enumerate(rows):
        y = TOP + number * (BAR + GAP)
        bold = name in (estimate.binding_phase, "process")
        shapes.append(Text(left - 10, y + 15, name, "text" if bold else "faint", anchor="end", bold=bold))
        shapes += _bar(parts, left, y, scale)
        shapes.append(Text(width - MARGIN, y + 15, format_bytes(total), "text" if bold else "faint", 12, "end"))
    shapes += _limit(left + usable_bytes * scale, usable_bytes, bottom, width)
    legend, height = _legend({ink for _, parts, _ in rows for ink, _, _ in parts}, bottom + 8, width)
    return Picture(width, height, (*shapes, *legend), _description(estimate, usable_bytes))


def kind_of(component: str) -> Ink:
    """The ink of a component of this name."""
    return next((ink for ink, _, words in KINDS if any(word in component for word in words)), OTHER[0])


Part = tuple[Ink, int, str]
"""A stretch of a bar: its ink, its bytes, and its name."""


def _rows(estimate: MemoryEstimate) -> Iterator[tuple[str, list[Part], int]]:
    """Name, parts and total of each bar, in the order of time; the process last."""
    order = get_args(Phase)
    for phase in sorted(estimate.phases, key=order.index):
        known = _parts(estimate.explain(phase))
        yield phase, known or [("other", estimate.phases[phase], "live tensors")], estimate.phases[phase]
    # What earlier runs took less than predicted is taken from the end of the bar.
    beyond = max(0, estimate.process_bytes - estimate.allocated_bytes)
    reserve = min(beyond, estimate.reserved_bytes - estimate.allocated_bytes)
    learned = min(beyond - reserve, max(0, estimate.learned_bytes))
    sizes: dict[Ink, int] = {"reserve": reserve, "context": beyond - reserve - learned, "learned": learned}
    if beyond:
        process = _parts(estimate.components) + [(ink, size, LEGEND[ink]) for ink, size in sizes.items() if size]
        yield "process", process, estimate.process_bytes


def _parts(components: Iterable[Component]) -> list[Part]:
    parts = [(kind_of(component.name), component.bytes, component.name) for component in components]
    return sorted(parts, key=lambda part: ORDER.index(part[0]))


def _bar(parts: Iterable[Part], left: float, y: float, scale: float) -> Iterator[Shape]:
    x = left
    for ink, size, name in parts:
        yield Rect(x, y, size * scale, BAR, ink, f"{name}: {format_bytes(size)}")
        x += size * scale


def _limit(x: float, usable_bytes: int, bottom: float, width: int) -> Iterator[Shape]:
    """The end of the card's memory, with its size above."""
    words = f"{format_bytes(usable_bytes)} usable"
    half = text_width(words, 12, bold=True) / 2
    place = min(max(x, half), width - half - MARGIN)
    yield Line(x, TOP - 8, x, bottom, "limit", 1.5)
    yield Text(place, TOP - 14, words, "limit", 12, "middle", bold=True)


def _legend(inks: set[Ink], top: float, width: int) -> tuple[list[Shape], int]:
    """A patch and a name for each of `inks`, on as many lines as it takes, and where they end."""
    shapes: list[Shape] = []
    x, y = 0.0, top
    for ink, name in LEGEND.items():
        needed = 18 + text_width(name, 12) + 14
        if ink not in inks:
            continue
        if x and x + needed > width:
            x, y = 0.0, y + 20
        shapes += [Rect(x, y, 12, 12, ink), Text(x + 18, y + 10, name, "faint", 12)]
        x += needed
    return shapes, int(y + 20)


def _description(estimate: MemoryEstimate, usable_bytes: int) -> str:
    phases = ", ".join(f"{phase} {format_bytes(size)}" for phase, size in estimate.phases.items())
    return (
        f"Peak of live tensors by phase: {phases}. "
        f"The process takes {format_bytes(estimate.process_bytes)} of {format_bytes(usable_bytes)}."
    )
