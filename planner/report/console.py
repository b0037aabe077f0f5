"""Where the reports are printed: data on stdout, everything else on stderr."""

import sys
from typing import TextIO

from rich.console import Console
from rich.text import Text

MIN_WRAP = 20


def data_console() -> Console:
    """A console on stdout that prints text as it is, without guessing at markup or numbers."""
    return _plain_console(sys.stdout)


def notes_console() -> Console:
    """The same on stderr, for warnings and progress."""
    return _plain_console(sys.stderr)


def is_ascii(console: Console) -> bool:
    """Whether the console's encoding lacks block and box characters."""
    return console.options.ascii_only


def print_hanging(console: Console, lead: Text, body: Text | str) -> None:
    """Print `lead` and beside it `body`, wrapped under its own first line."""
    text = Text(body) if isinstance(body, str) else body
    for number, line in enumerate(text.wrap(console, max(console.width - lead.cell_len, MIN_WRAP))):
        line.rstrip()
        console.print(Text.assemble(" " * lead.cell_len if number else lead, line), soft_wrap=True)


def _plain_console(stream: TextIO) -> Console:
    return Console(file=stream, highlight=False, markup=False, emoji=False, safe_box=True)
