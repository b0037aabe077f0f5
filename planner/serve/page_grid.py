"""The map of length and micro-batch as the page shows it: what fits, what does not, and the frontier between."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from planner.explore.length_grid import LengthGrid, length_grid
from planner.memory.verdict import Verdict
from planner.search.candidate import Candidate
from planner.search.planning import Plan
from planner.serve.page_question import PageQuestion
from planner.units import GIB, format_bytes

Side = Literal["edge-right", "edge-top"]


@dataclass(frozen=True, slots=True)
class GridCell:
    """A cell of the map: its memory, how full the card is (1: exactly), and the link that asks for it."""

    words: str
    spoken: str
    verdict: Verdict
    share: float
    query: str
    chosen: bool
    edges: str


@dataclass(frozen=True, slots=True)
class PageGrid:
    """The lengths of its columns, and its rows by micro-batch, the largest first."""

    lengths: tuple[int, ...]
    rows: tuple[tuple[int, tuple[GridCell | None, ...]], ...]


def page_grid(question: PageQuestion, plan: Plan) -> PageGrid:
    """The memory of `plan` at other lengths and micro-batches, each cell with the question that asks for it."""
    grid = length_grid(plan)
    rows = []
    for row, batch in enumerate(grid.micro_batches):
        cells = enumerate(grid.cells[row])
        shown = (_cell(question, plan, cell, _edges(grid, row, column)) if cell else None for column, cell in cells)
        rows.append((batch, tuple(shown)))
    return PageGrid(grid.lengths, tuple(rows[::-1]))


def _cell(question: PageQuestion, plan: Plan, cell: Candidate, edges: Iterator[Side]) -> GridCell:
    config, size = cell.config, cell.estimate.process_bytes
    batch, own = config.per_device_train_batch_size, plan.closest
    fields = {"max_length": str(config.max_length), "batch_size": str(config.effective_batch_size)}
    return GridCell(
        words=_gib(size),
        spoken=f"{batch} rows of {config.max_length:,} tokens: {format_bytes(size)}, {cell.verdict}",
        verdict=cell.verdict,
        share=round(size / plan.usable_bytes, 3),
        query=question.with_fields(**fields).with_settings({"per_device_train_batch_size": batch}).query,
        chosen=(own.max_length, own.per_device_train_batch_size) == (config.max_length, batch),
        edges=" ".join(edges),
    )


def _edges(grid: LengthGrid, row: int, column: int) -> Iterator[Side]:
    """The sides on which the frontier runs: here it fits, there it does not. Rows are drawn with the largest on top."""

    def fits(r: int, c: int) -> bool:
        inside = r < len(grid.micro_batches) and c < len(grid.lengths)
        cell = grid.cells[r][c] if inside else None
        return cell is None or cell.verdict != "no"

    if not fits(row, column):
        return
    if column + 1 < len(grid.lengths) and not fits(row, column + 1):
        yield "edge-right"
    if row + 1 < len(grid.micro_batches) and not fits(row + 1, column):
        yield "edge-top"


def _gib(num_bytes: int) -> str:
    """GiB, short enough for a cell."""
    size = num_bytes / GIB
    return f"{size:.1f}" if size < 10 else f"{size:,.0f}"
