"""A data file, read with a bar on the terminal, and a word on lengths that had to be guessed."""

import sys
from pathlib import Path

from planner.data_report import DataReport


def inspect_with_bar(data: Path, model: str) -> DataReport:
    """What stands in `data`, as `model` reads it. Raises as `inspect_data` does."""
    from planner.data_inspection import guess_note, inspect_data
    from planner.report.progress import progress_bar

    with progress_bar(f"reading {data.name}") as on_progress:
        report = inspect_data(data, model, on_progress=on_progress)
    note = guess_note(report)
    if note and not report.rejected:
        sys.stderr.write(f"note: {note}\n")
    return report
