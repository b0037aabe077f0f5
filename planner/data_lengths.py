"""The lengths of the user's rows in tokens, asked from the trainer, which knows the formats and the tokenizers."""

import json
import subprocess
import sys
from pathlib import Path

from planner.request import DataLengths
from profiles.errors import DataError, RunError

CHARACTERS_PER_TOKEN = 3
"""Without the tokenizer. English has 4 or more characters a token, code and many languages fewer; a low figure rather
overestimates the memory."""


def data_lengths(path: Path, model: str) -> tuple[DataLengths, str | None]:
    """Lengths of the rows of `path` for `model`, and a sentence on how they were guessed, None if they were counted.

    Raises DataError for a file that cannot be trained on.
    """
    argv = [sys.executable, "-m", "trainer.row_lengths", str(path), model]
    run = subprocess.run(argv, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(run.stdout)
    except json.JSONDecodeError:
        last_line = (run.stderr.strip().splitlines() or ["no output"])[-1]
        raise RunError(f"{path} cannot be measured: {last_line}", hint="pip install 'fitune[train]'") from None
    if "error" in answer:
        raise DataError(answer["error"]["message"], hint=answer["error"]["hint"])
    lengths, note = answer["lengths"], None
    if answer["unit"] == "characters":
        lengths = [-(-length // CHARACTERS_PER_TOKEN) for length in lengths]
        note = (
            f"the tokenizer of {model} is not on this machine; a token is taken for {CHARACTERS_PER_TOKEN} characters"
        )
    return DataLengths(answer["num_rows"], tuple(lengths)), note
