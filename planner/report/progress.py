"""A bar for what takes long, on stderr and only on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from planner.report.console import notes_console


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[float], None]]:
    """Show a bar while the block runs; what it gives is called with the share that is done, between 0 and 1."""
    console = notes_console()
    columns = (TextColumn(label, markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=1.0)
        yield lambda share: progress.update(task, completed=share)


@contextmanager
def busy(label: str) -> Iterator[None]:
    """Show that something goes on while the block runs, where nobody knows how far it is."""
    console = notes_console()
    if not console.is_terminal:
        yield
        return
    with console.status(label):
        yield
