"""How a failure is told: a sentence and a way out on stderr, and with --json an object on stdout."""

import json
import sys

from rich.text import Text

from planner.report.console import notes_console


def print_error(message: str, hint: str | None, *, exit_code: int, as_json: bool) -> None:
    """Print `message` and, after an empty line, `hint` on stderr; with `as_json` also one JSON object on stdout."""
    console = notes_console()
    console.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    if hint:
        console.print(Text.assemble("\n", ("hint: ", "bold cyan"), hint), soft_wrap=True)
    if as_json:
        error = {"message": message, "hint": hint, "exit_code": exit_code}
        sys.stdout.write(json.dumps({"error": error}, indent=2) + "\n")
