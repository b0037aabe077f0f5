"""Curves over steps, lengths or whatever grows, with axes that start at zero."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10

from planner.picture.shapes import Ink, Line, Picture, Rect, Shape, Text, text_width

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """Points in order of x, their name, and their color; `dashed` for what is only predicted."""

    name: str
    points: Sequence[Point]
    ink: Ink
    dashed: bool = False


TOP, MARGIN, LEGEND_LINE = 12, 14, 20
TICKS = 4
DASH = 7.0


def curve_picture(
    curves: Sequence[Curve],
    x_label: str,
    y_words: Callable[[float], str],
    *,
    width: int = 720,
    height: int = 180,
    y_step: Callable[[float], float] | None = None,
) -> Picture:
    """The `curves` over one pair of axes, `height` pixels high; `y_words` says a value of y.

    At least one of the curves must have a point.
    """
    xs = [x for curve in curves for x, _ in curve.points]
    largest = max(y for curve in curves for _, y in curve.points)
    step = (y_step or round_step)(largest / TICKS) if largest else 1.0
    y_top = max(step, step * ceil(largest / step))
    base = TOP + height
    ticks = [step * number for number in range(round(y_top / step) + 1)]
    left = max(text_width(y_words(tick), 12) for tick in ticks) + 12
    x_low, x_high = min(xs), max(xs)

    def place(point: Point) -> Point:
        x = left + (point[0] - x_low) / ((x_high - x_low) or 1.0) * (width - MARGIN - left)
        return x, TOP + (1 - point[1] / y_top) * (base - TOP)

    shapes: list[Shape] = []
    for tick in ticks:
        y = place((x_low, tick))[1]
        shapes += [Line(left, y, width - MARGIN, y), Text(left - 6, y + 4, y_words(tick), "faint", 12, "end")]
    for curve in curves:
        shapes += _strokes([place(point) for point in curve.points], curve)
    for x, anchor in ((x_low, "start"), (x_high, "end")):
        shapes.append(Text(place((x, 0))[0], base + 16, f"{x:,.0f}", "faint", 12, anchor))  # type: ignore[arg-type]
    shapes.append(Text((left + width - MARGIN) / 2, base + 16, x_label, "faint", 12, "middle"))
    legend, bottom = _legend(curves, base + 42, left, width)
    last = ", ".join(f"{curve.name} {y_words(curve.points[-1][1])}" for curve in curves if curve.points)
    description = f"Over {x_label} from {x_low:,.0f} to {x_high:,.0f}, at the end: {last}."
    return Picture(width, round(bottom + 8), (*shapes, *legend), description)


def round_step(about: float) -> float:
    """The least of 1, 2, 5, 10, ... that is not below `about`."""
    power = 10.0 ** floor(log10(about))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= about * 0.999)


def binary_step(about: float) -> float:
    """The least power of two that is not below `about`, for bytes."""
    step = 1.0
    while step < about * 0.999:
        step *= 2
    return step


def _strokes(points: Sequence[Point], curve: Curve) -> Iterator[Shape]:
    if len(points) == 1:
        (x, y), *_ = points
        yield Rect(x - 3, y - 3, 6, 6, curve.ink)
    for start, end in pairwise(points):
        yield from _dashes(start, end, curve.ink) if curve.dashed else [Line(*start, *end, curve.ink, 2.0)]


def _dashes(start: Point, end: Point, ink: Ink) -> Iterator[Line]:
    (x1, y1), (x2, y2) = start, end
    number = max(1, round(((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5 / DASH))
    across, down = (x2 - x1) / number, (y2 - y1) / number
    for dash in range(0, number, 2):
        x, y = x1 + dash * across, y1 + dash * down
        yield Line(x, y, x + across, y + down, ink, 2.0)


def _legend(curves: Sequence[Curve], y: float, left: float, width: int) -> tuple[list[Shape], float]:
    """A stroke and a name for each curve, on as many lines as it takes, and where they end."""
    shapes: list[Shape] = []
    x = left
    for curve in curves:
        needed = 20 + text_width(curve.name, 12) + 18
        if x > left and x + needed > width:
            x, y = left, y + LEGEND_LINE
        shapes += [Rect(x, y - 8, 14, 4, curve.ink), Text(x + 20, y - 2, curve.name, "faint", 12)]
        x += needed
    return shapes, y
