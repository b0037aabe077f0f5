"""What a terminal shows while an answer reads a data file or traces a step."""

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from planner.asking.question import Access

if TYPE_CHECKING:
    from planner.data.report import DataReport


def inspect_with_bar(data: Path, model: str) -> "DataReport":
    """What stands in `data`, as `model` reads it. Raises as `inspect_data` does."""
    from planner.data.inspection import guess_note, inspect_data
    from planner.report.progress import progress_bar

    with progress_bar(f"reading {data.name}") as on_progress:
        report = inspect_data(data, model, on_progress=on_progress)
    note = guess_note(report)
    if note and not report.rejected:
        sys.stderr.write(f"note: {note}\n")
    return report


def tracing(why: str | None) -> AbstractContextManager[None]:
    """A sign of life on stderr, below a word on why there is a trace that nobody asked for."""
    from planner.report.progress import busy

    if why:
        sys.stderr.write(f"note: {why}; tracing the step instead\n")
    return busy("tracing the step on fake tensors")


TERMINAL = Access(inspect=inspect_with_bar, tracing=tracing)
