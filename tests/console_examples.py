"""Commands that the documentation shows, and what they print.

A `console` block is a session: `$` starts a command, the rest is its output, a line of `...` stands for lines left out.
`exit=1` behind the word console is the exit code of its last command; all others end with 0. The sessions of a section
share a folder.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BLOCK = re.compile(r"^```console(?: exit=(?P<exit_code>\d))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS_TORCH = ("fitune launch", "fitune merge", "fitune chat", "python -m trainer")
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "COLUMNS": "100",
    "NO_COLOR": "1",
}


@dataclass(frozen=True)
class Example:
    """A command and the output shown, in parts between which lines are left out."""

    command: str
    output: tuple[str, ...]
    exit_code: int

    @property
    def needs_torch(self) -> bool:
        return self.command.startswith(NEEDS_TORCH)


def examples(section: str) -> Iterator[Example]:
    for block in BLOCK.finditer(section):
        sessions = re.split(r"^\$ ", block["text"], flags=re.MULTILINE)[1:]
        exit_codes = [0] * (len(sessions) - 1) + [int(block["exit_code"] or 0)]
        for session, exit_code in zip(sessions, exit_codes, strict=True):
            command, _, output = session.partition("\n")
            yield Example(command, tuple(re.split(r"^ *\.\.\.$", output, flags=re.MULTILINE)), exit_code)


def sections_with_examples(text: str) -> Iterator[object]:
    """The examples of each section of `text`, as parameters of a test; `slow` where one needs torch."""
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        if found := list(examples(section)):
            marks = [pytest.mark.slow] if any(example.needs_torch for example in found) else []
            yield pytest.param(found, id=section.partition("\n")[0], marks=marks)


def comparable(text: str, example: Example) -> str:
    """`text` without what differs from machine to machine: where lines break, and the figures of this processor."""
    words = " ".join(text.split())
    if not example.needs_torch and "--gpu cpu" not in example.command:
        return words
    return re.sub(r"(# (min|h) )*# s left", "# s left", re.sub(r"[\d.,]+", "#", words))


def run_as_shown(shown: list[Example], folder: Path) -> None:
    """Run the commands one after the other in `folder`, and hold each to what is shown of it."""
    (folder / "calibration").symlink_to(ROOT / "calibration")
    for example in shown:
        run = subprocess.run(
            ["bash", "-c", example.command],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert run.returncode == example.exit_code, run.stdout
        for part in example.output:
            assert comparable(part, example) in comparable(run.stdout, example)
