"""Rows of a data file, each with the place where it stands. Needs no torch."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiles.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

# A column of a CSV file may be a whole conversation; csv's own limit is 128 KiB.
LARGEST_CSV_FIELD = 1 << 30


@dataclass(frozen=True, slots=True)
class Row:
    """One example as the file has it, and where: `line 3` of a text file, `row 3` of the others, from 1."""

    place: str
    values: dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """All rows of a .jsonl, .json, .csv or .parquet file, or of a folder that `datasets` saved.

    Raises DataError with the line for what cannot be read, and for a file without rows.
    """
    if not path.exists():
        raise DataError(f"there is no data file {path}")
    if not path.is_dir() and path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} is not a data file that fitune reads", hint=f"it reads {', '.join(SUFFIXES)}")
    reader = _saved_rows if path.is_dir() else READERS[path.suffix.lower()]
    try:
        rows = list(reader(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _json_object(path, f"line {number}", _json(path, line.rstrip(), first_line=number))


def _json_list(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8-sig")
    values = _json(path, text, first_line=1) if text.strip() else []
    if not isinstance(values, list):
        raise DataError(
            f"{path} holds {_kind(values)}, but must hold a list of objects", hint="one object a line is .jsonl"
        )
    for number, value in enumerate(values, start=1):
        yield _json_object(path, f"row {number}", value)


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(LARGEST_CSV_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for values in reader:
                place = f"line {reader.line_num}"
                if None in values or None in values.values():
                    raise DataError(
                        f"{path}, {place}: not as many fields as the header's {len(reader.fieldnames or ())}"
                    )
                yield Row(place, dict(values))
        except csv.Error as error:
            # line_num is the last line that was read without an error.
            raise DataError(f"{path}, line {reader.line_num + 1}: {error}") from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        values = parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a Parquet file: {str(error).splitlines()[0]}") from error
    return (Row(f"row {number}", value) for number, value in enumerate(values, start=1))


def _saved_rows(path: Path) -> Iterator[Row]:
    import datasets

    try:
        saved = datasets.load_from_disk(path)
    except FileNotFoundError as error:
        raise DataError(
            f"the folder {path} was not written by datasets' save_to_disk", hint="give a file, or such a folder"
        ) from error
    if isinstance(saved, datasets.DatasetDict):
        if "train" not in saved:
            raise DataError(f"{path} has the splits {', '.join(saved)}, but none called train")
        saved = saved["train"]
    return (Row(f"row {number}", value) for number, value in enumerate(saved, start=1))


READERS = {".jsonl": _json_lines, ".json": _json_list, ".csv": _csv, ".parquet": _parquet}


def _json(path: Path, text: str, first_line: int) -> object:
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"{path}, line {line}: not JSON: {error.msg} at character {error.colno}") from error
    return value


def _json_object(path: Path, place: str, value: object) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{path}, {place}: {_kind(value)}, but a row must be an object with named columns")
    return Row(place, value)


def _kind(value: object) -> str:
    names = {
        list: "a list",
        str: "a string",
        int: "a number",
        float: "a number",
        bool: "a truth value",
        dict: "an object",
    }
    return names.get(type(value), "null")
