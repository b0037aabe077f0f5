"""What the trainer finds in a data file: it knows the formats and the tokenizers, and runs as another process."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from planner.config.run_config import DataFormat
from planner.data.lengths import DataLengths
from planner.data.report import DataReport
from profiles.errors import DataError, RunError

CHARACTERS_PER_TOKEN = 3
"""Without the tokenizer. English has 4 or more characters a token, code and many languages fewer; a low figure rather
overestimates the memory."""

OnProgress = Callable[[float], None]
"""Called with the share of the file that is read."""


def inspect_data(
    path: Path,
    model: str | None = None,
    *,
    data_format: DataFormat = "auto",
    max_length: int | None = None,
    download: bool = False,
    preview: int = 0,
    on_progress: OnProgress = lambda share: None,
) -> DataReport:
    """What stands in `path`, and how `model` reads it; `preview` of its first rows in full.

    With `max_length`, rows are told of which nothing is learned within it. `download` fetches a tokenizer that is not
    on this machine. Raises DataError for a file of which no row can be read, and RunError if the other process fails.
    """
    argv = [sys.executable, "-m", "trainer.data.inspect_data", str(path), "--preview", str(preview)]
    argv += ["--format", data_format]
    argv += ["--model", model] if model else []
    argv += ["--max-length", str(max_length)] if max_length else []
    argv += ["--download"] if download else []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as complaints:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=complaints, text=True, encoding="utf-8")
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                answer = json.loads(line)
                if "share" in answer:
                    on_progress(answer["share"])
                elif "error" in answer:
                    raise DataError(answer["error"]["message"], hint=answer["error"]["hint"])
                else:
                    return DataReport.model_validate(answer)
        complaints.seek(0)
        last_line = (complaints.read().strip().splitlines() or ["no output"])[-1]
    raise RunError(f"{path} cannot be read: {last_line}", hint="pip install 'fitune[train]'")


def lengths_of(report: DataReport) -> DataLengths:
    """The lengths of the rows in tokens, guessed where only characters could be counted. Raises ConfigError if none."""
    if report.unit == "tokens":
        return DataLengths(report.length_counts)
    return DataLengths.of(
        -(-length // CHARACTERS_PER_TOKEN) for length, count in report.length_counts for _ in range(count)
    )


def guess_note(report: DataReport) -> str | None:
    """A sentence on how the lengths were guessed; None if they were counted."""
    if report.unit == "tokens":
        return None
    why = f"the tokenizer of {report.model} is not on this machine" if report.model else "no model is named"
    return f"{why}; every {CHARACTERS_PER_TOKEN} characters are taken for a token"
