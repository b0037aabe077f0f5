"""What stands in a data file: `python -m trainer.data.inspect_data FILE` prints lines of JSON.

`{"share": 0.5}` says how much of the file is read; the last line is a `planner.data.report.DataReport`, or
`{"error": ...}`. With `--model` the rows are counted in its tokens, if its tokenizer is on this machine.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from planner.config.run_config import DataFormat
from planner.data.report import DataReport
from profiles.errors import FituneError
from trainer.data.files import scan_rows
from trainer.data.inspection import Inspection
from trainer.data.tokenizer import find_tokenizer

if TYPE_CHECKING:
    from trainer.data.token_counts import TokenCounts

STEP = 0.01
"""Share of the file between two words on how far it is read."""


def inspect(
    path: Path,
    model: str | None = None,
    *,
    declared: DataFormat = "auto",
    max_length: int | None = None,
    download: bool = False,
    preview: int = 0,
    on_share: Callable[[float], None] = lambda share: None,
) -> DataReport:
    """What is found in `path`; `preview` of its first rows are shown in full.

    Raises DataError for a file of which no row can be read, and what `find_tokenizer` raises.
    """
    tokens = _token_counts(model, max_length, download) if model else None
    inspection = Inspection(declared, tokens)
    said = 0.0
    for row in scan_rows(path):
        inspection.add(row, preview)
        if row.share - said >= STEP:
            said = row.share
            on_share(said)
    return inspection.report(path, model)


def _token_counts(model: str, max_length: int | None, download: bool) -> "TokenCounts | None":
    """Counts for the tokenizer of `model`; None where it or its libraries are not on this machine."""
    tokenizer = find_tokenizer(model, download=download)
    if tokenizer is None:
        return None
    from trainer.data.token_counts import TokenCounts

    return TokenCounts(tokenizer, max_length)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report as JSON; an error is printed the same way."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.data.inspect_data", description="Look at all rows of a file."
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--format", choices=get_args(DataFormat), default="auto")
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--preview", type=int, default=0, help="rows to show in full")
    parser.add_argument("--download", action="store_true", help="fetch the tokenizer if it is not here")
    arguments = parser.parse_args(argv)
    try:
        report = inspect(
            arguments.file,
            arguments.model,
            declared=arguments.format,
            max_length=arguments.max_length,
            download=arguments.download,
            preview=arguments.preview,
            on_share=lambda share: _print(json.dumps({"share": share})),
        )
    except FituneError as error:
        _print(json.dumps({"error": {"message": error.message, "hint": error.hint}}))
        return error.exit_code
    _print(report.model_dump_json())
    return 0


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
