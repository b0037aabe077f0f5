"""How long the rows of a data file are: `python -m trainer.row_lengths FILE MODEL` prints one JSON object.

In tokens where the model's tokenizer is on this machine, else in characters; nothing is downloaded. Needs no torch.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profiles.errors import DataError, FituneError
from trainer.data_files import read_rows
from trainer.data_formats import BadRow, find_format

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
MOST_ROWS = 20_000
"""Rows that are measured; of a longer file these many, evenly spread."""


def row_lengths(path: Path, model: str) -> dict[str, Any]:
    """The number of rows of `path`, and the length of those measured in `unit`. Raises DataError for a bad row."""
    rows = read_rows(path)
    convert = find_format("auto", rows[0].values).convert
    step = -(-len(rows) // MOST_ROWS)
    texts = []
    for row in rows[::step]:
        try:
            texts.append(_text(convert(row.values)))
        except BadRow as error:
            raise DataError(f"{path}, {row.place}: {error}") from error
    tokenizer = _tokenizer(model)
    if tokenizer is None:
        return {"num_rows": len(rows), "unit": "characters", "lengths": [len(text) for text in texts]}
    # One more for the end of the sequence.
    lengths = [len(encoding.ids) + 1 for encoding in tokenizer.encode_batch_fast(texts)]
    return {"num_rows": len(rows), "unit": "tokens", "lengths": lengths}


def _text(example: dict[str, Any]) -> str:
    """All text of a row; what a chat template puts around the turns is left out."""
    if "messages" in example:
        return "\n".join(message["content"] for message in example["messages"])
    return "".join(example[column] for column in ("text", "prompt", "completion") if column in example)


def _tokenizer(model: str) -> "Tokenizer | None":
    """The tokenizer in the folder `model`, or in the Hub's cache; None where there is none."""
    try:
        from huggingface_hub import try_to_load_from_cache
        from tokenizers import Tokenizer
    except ImportError:
        return None
    local = Path(model) / TOKENIZER_FILE
    found = local if local.exists() else try_to_load_from_cache(model, TOKENIZER_FILE) if "/" in model else None
    return Tokenizer.from_file(str(found)) if isinstance(found, str | Path) else None


def main(argv: Sequence[str] | None = None) -> int:
    """Print the lengths as JSON; an error is printed the same way."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.row_lengths", description="Measure the rows of a data file."
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("model")
    arguments = parser.parse_args(argv)
    try:
        document, exit_code = row_lengths(arguments.file, arguments.model), 0
    except FituneError as error:
        document, exit_code = {"error": {"message": error.message, "hint": error.hint}}, error.exit_code
    sys.stdout.write(json.dumps(document) + "\n")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
