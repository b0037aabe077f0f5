"""The memory bar: what is alive at the peak, drawn against the memory of the card."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from rich.console import Console
from rich.text import Text

from planner.memory.estimate import MemoryEstimate
from planner.report.console import is_ascii
from planner.units import format_bytes

MAX_WIDTH = 72
MAX_COMPONENTS = 5
SHADES = "\u2588\u2593\u2592\u2591\u256c\u2573\u2571\u25aa"
LETTERS = "#%=+o*-:"
LEARNED = "as runs here took"
COLORS = ("blue", "cyan", "green", "yellow", "magenta", "red", "bright_black", "white")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the bar: what it stands for, in bytes."""

    name: str
    bytes: int


def segments(estimate: MemoryEstimate) -> list[Segment]:
    """The largest components, the others as one, and what torch and the driver hold on top; they sum to the process."""
    ranked = sorted(estimate.components, key=lambda component: -component.bytes)
    visible = [part for part in ranked if part.bytes >= estimate.process_bytes / MAX_WIDTH / 2]
    num_shown = min(len(visible), MAX_COMPONENTS)
    shown, others = ranked[:num_shown], ranked[num_shown:]
    parts = [Segment(component.name, component.bytes) for component in shown]
    parts.append(Segment("other tensors", sum(component.bytes for component in others)))
    parts.append(Segment("allocator reserve", estimate.reserved_bytes - estimate.allocated_bytes))
    parts.append(Segment("CUDA context", estimate.process_bytes - estimate.learned_bytes - estimate.reserved_bytes))
    parts.append(Segment(LEARNED, estimate.learned_bytes))
    return [part for part in parts if part.bytes > 0 or (part.name == LEARNED and part.bytes)]


def print_memory_bar(console: Console, estimate: MemoryEstimate, usable_bytes: int) -> None:
    """Print the bar, its scale and a legend with sizes. What passes `usable_bytes` is drawn past the mark."""
    parts = segments(estimate)
    width = min(console.width - 4, MAX_WIDTH)
    full_scale = max(usable_bytes, estimate.process_bytes, estimate.process_bytes - estimate.learned_bytes)
    ascii_only = is_ascii(console)
    console.print(Text("  ") + _bar(parts, usable_bytes, full_scale, width, ascii_only))
    console.print(Text("  ") + _scale(usable_bytes, full_scale, width, ascii_only))
    console.print(_legend(parts, ascii_only))


def segment_cells(sizes: Sequence[int], full_scale: int, width: int) -> list[int]:
    """Cells of each segment; they end where the running sum ends, so rounding never adds up.

    What is less than nothing has none.
    """
    edges = [round(total * width / full_scale) for total in accumulate((max(0, size) for size in sizes), initial=0)]
    return [end - start for start, end in pairwise(edges)]


def _bar(parts: Sequence[Segment], usable: int, full_scale: int, width: int, ascii_only: bool) -> Text:
    bar = Text(no_wrap=True)
    cells = segment_cells([part.bytes for part in parts], full_scale, width)
    for count, (glyph, color) in zip(cells, _marks(len(parts), ascii_only), strict=True):
        bar.append(glyph * count, style=color)
    bar.append(("." if ascii_only else "\u00b7") * (width - sum(cells)), style="dim")
    limit = round(usable * width / full_scale)
    mark = Text("|" if ascii_only else "\u2502", style="bold")
    return bar[:limit] + mark + bar[limit:]


def _scale(usable: int, full_scale: int, width: int, ascii_only: bool) -> Text:
    limit = round(usable * width / full_scale)
    label = f"{format_bytes(usable)} usable"
    arrow = "^" if ascii_only else "\u2191"
    before = f"{label} {arrow}".rjust(limit + 1)
    return Text(before if len(before) == limit + 1 else f"{' ' * limit}{arrow} {label}", style="dim")


def _legend(parts: Sequence[Segment], ascii_only: bool) -> Text:
    longest = max(len(part.name) for part in parts)
    legend = Text(no_wrap=True)
    for part, (glyph, color) in zip(parts, _marks(len(parts), ascii_only), strict=True):
        legend.append("  ").append(glyph, style=color)
        legend.append(f" {part.name:<{longest}}  {format_bytes(part.bytes):>9}\n")
    legend.rstrip()
    return legend


def _marks(count: int, ascii_only: bool) -> list[tuple[str, str]]:
    glyphs = LETTERS if ascii_only else SHADES
    return [(glyphs[i % len(glyphs)], COLORS[i % len(COLORS)]) for i in range(count)]
