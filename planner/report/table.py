"""A table that drops its least important columns on a narrow terminal, and never wraps a number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

Cell = str | Text
Justify = Literal["left", "right"]
INDENT = 2
GAP = 2


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, how it is aligned, and its rank: the column with the highest rank is dropped first."""

    heading: str
    rank: int = 0
    justify: Justify = "left"


def print_table(
    console: Console, columns: Sequence[Column], rows: Sequence[Sequence[Cell]], *, whole: bool = False
) -> None:
    """Print `rows` under those of the `columns` that fit the console and are not empty everywhere.

    A line that is still too long is cut, or goes on beyond the edge if it has to be `whole`.
    """
    kept = fitting_columns(columns, rows, console.width)
    heading = [Text(column.heading, style="dim") for column in columns]
    widths = {i: max(_width(row[i]) for row in (heading, *rows)) for i in kept}
    for row in (heading, *rows) if any(column.heading for column in columns) else rows:
        cells = (_aligned(row[i], widths[i], columns[i].justify) for i in kept)
        line = Text(" " * INDENT).append_text(Text(" " * GAP).join(cells))
        line.rstrip()
        console.print(line, no_wrap=True, overflow="ignore" if whole else "ellipsis", soft_wrap=whole)


def fitting_columns(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> list[int]:
    """Indices of the columns that fit `width` cells; those of rank 0 always stay."""
    kept = [i for i in range(len(columns)) if any(_width(row[i]) for row in rows)]
    widths = {i: max([cell_len(columns[i].heading), *(_width(row[i]) for row in rows)]) for i in kept}
    while INDENT - GAP + sum(widths[i] + GAP for i in kept) > width and any(columns[i].rank for i in kept):
        kept.remove(max(kept, key=lambda i: columns[i].rank))
    return kept


def _aligned(cell: Cell, width: int, justify: Justify) -> Text:
    space = " " * (width - _width(cell))
    return Text.assemble(space, cell) if justify == "right" else Text.assemble(cell, space)


def _width(cell: Cell) -> int:
    return cell.cell_len if isinstance(cell, Text) else cell_len(cell)
