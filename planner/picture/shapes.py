"""What a picture is made of: bars, lines and words in colors that have names. Sizes are in pixels."""

from dataclasses import dataclass, replace
from typing import Literal

Ink = Literal[
    "text",
    "faint",
    "line",
    "paper",
    "limit",
    "weights",
    "adapter",
    "optimizer",
    "gradients",
    "stored",
    "work",
    "other",
    "reserve",
    "context",
    "learned",
]

LIGHT: dict[Ink, str] = {
    "text": "#1f2933",
    "faint": "#5b6773",
    "line": "#d5dae0",
    "paper": "#ffffff",
    "limit": "#b42318",
    "weights": "#3f6797",
    "adapter": "#7fb0d8",
    "optimizer": "#8a6fa8",
    "gradients": "#c9a2cf",
    "stored": "#e0b04c",
    "work": "#d9794a",
    "other": "#5f9e8f",
    "reserve": "#b4bcc5",
    "context": "#7c8792",
    "learned": "#4d565f",
}
"""The colors of an ink, on white. A page may give its own for another ground, as `--ink-weights` and so on."""


@dataclass(frozen=True, slots=True)
class Rect:
    """A bar; `title` is shown when it is pointed at."""

    x: float
    y: float
    width: float
    height: float
    ink: Ink
    title: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line."""

    x1: float
    y1: float
    x2: float
    y2: float
    ink: Ink = "line"
    width: float = 1.0


@dataclass(frozen=True, slots=True)
class Text:
    """Words on one line; `x` is where they start, end, or have their middle, `y` their base line."""

    x: float
    y: float
    words: str
    ink: Ink = "text"
    size: int = 13
    anchor: Literal["start", "middle", "end"] = "start"
    bold: bool = False


Shape = Rect | Line | Text


@dataclass(frozen=True, slots=True)
class Picture:
    """Shapes on a ground; `description` says in words what they show."""

    width: int
    height: int
    shapes: tuple[Shape, ...]
    description: str


TITLE_HEIGHT = 30


def titled(picture: Picture, title: str) -> Picture:
    """`picture` below a title, to be understood where it stands alone."""
    moved = tuple(_lower(shape, TITLE_HEIGHT) for shape in picture.shapes)
    words = Text(0, 16, title, size=14, bold=True)
    return replace(picture, height=picture.height + TITLE_HEIGHT, shapes=(words, *moved))


def _lower(shape: Shape, by: float) -> Shape:
    if isinstance(shape, Line):
        return replace(shape, y1=shape.y1 + by, y2=shape.y2 + by)
    return replace(shape, y=shape.y + by)


LETTER_WIDTH = 0.62
"""Of an average letter of a wide sans-serif font, as a share of the size of the font; others take less."""
BOLD_WIDTH = 1.1


def text_width(words: str, size: int = 13, *, bold: bool = False) -> float:
    """About how wide `words` are at most."""
    return len(words) * size * LETTER_WIDTH * (BOLD_WIDTH if bold else 1)
