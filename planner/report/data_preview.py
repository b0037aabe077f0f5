"""Rows as the model reads them: exact text, tokens, and what counts in the loss."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from planner.data.report import Piece, PreviewRow
from planner.report.console import is_ascii

SHOWN_TOKENS = 400

LEARNED = ("black on green", "black on bright_green")
READ = ("on grey23", "on grey37")
"""Two shades each, so that neighbouring tokens can be told apart."""

OPEN, CLOSE, BETWEEN = "[[", "]]", "|"


def print_preview(console: Console, rows: Sequence[PreviewRow]) -> None:
    """Print rows token by token: in colours on a terminal, with marks elsewhere."""
    coloured = console.color_system is not None and not console.no_color
    if coloured:
        console.print(
            Text.assemble(
                "As the model reads them: ", ("green", LEARNED[0]), " counts in the loss, a shade is a token."
            )
        )
    else:
        console.print(
            f"As the model reads them: {OPEN}text{CLOSE} counts in the loss, {BETWEEN} stands between tokens."
        )
    for row in rows:
        for number, pieces in enumerate(row.sequences):
            console.print()
            console.print(_heading(row, number, pieces), style="dim", soft_wrap=True)
            shown = pieces[:SHOWN_TOKENS]
            mark = "\\n" if is_ascii(console) else "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"
            text = _coloured(shown, mark) if coloured else Text(_marked(shown, mark))
            text.rstrip()
            console.print(text, soft_wrap=True)
            if len(pieces) > len(shown):
                console.print(f"... {len(pieces) - len(shown):,} more tokens with --json", style="dim")


def _heading(row: PreviewRow, number: int, pieces: Sequence[Piece]) -> str:
    which = "" if len(row.sequences) == 1 else f", {('chosen', 'rejected')[number]}"
    return f"{row.place}{which}: {len(pieces):,} tokens, {sum(piece.learned for piece in pieces):,} count in the loss"


def _coloured(pieces: Sequence[Piece], line_end: str) -> Text:
    text = Text()
    for number, piece in enumerate(pieces):
        style = (LEARNED if piece.learned else READ)[number % 2]
        # A colour up to the edge of the screen would look like spaces.
        for part, line in enumerate(piece.text.split("\n")):
            text.append("\n" if part else "")
            text.append(line + (line_end if part < piece.text.count("\n") else ""), style)
    return text


def _marked(pieces: Sequence[Piece], line_end: str) -> str:
    text, learned = "", False
    for piece in pieces:
        if piece.learned != learned:
            text += OPEN if piece.learned else CLOSE
        elif text:
            text += BETWEEN
        learned = piece.learned
        text += piece.text.replace("\n", f"{line_end}\n")
    return text + (CLOSE if learned else "")
