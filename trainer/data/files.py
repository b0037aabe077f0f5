"""Rows of a data file, each with the place where it stands. Needs no torch."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from profiles.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

# A column of a CSV file may be a whole conversation; csv's own limit is 128 KiB.
LARGEST_CSV_FIELD = 1 << 30

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Row:
    """One example as the file has it, and where: `line 3` of a text file, `row 3` of the others, from 1.

    `share` is how much of the file is read by then, between 0 and 1.
    """

    place: str
    values: dict[str, Any]
    share: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A place that holds no row, and why; `share` as in `Row`."""

    place: str
    what: str
    share: float = field(default=0.0, compare=False)


def read_rows(path: Path) -> list[Row]:
    """All rows of a .jsonl, .json, .csv or .parquet file, or of a folder that `datasets` saved.

    Raises DataError with the line for the first that cannot be read, and for a file without rows.
    """
    rows = []
    for row in scan_rows(path):
        if isinstance(row, Unreadable):
            raise DataError(f"{path}, {row.place}: {row.what}")
        rows.append(row)
    return rows


def scan_rows(path: Path) -> Iterator[Row | Unreadable]:
    """The rows of a file or folder one after the other, and what stands where a row should be.

    Lines of JSON, CSV and Parquet are streamed. Raises DataError for a file that cannot be read at all, and for one
    without rows.
    """
    if not path.exists():
        raise DataError(f"there is no data file {path}")
    if not path.is_dir() and path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} is not a data file that fitune reads", hint=f"it reads {', '.join(SUFFIXES)}")
    reader = _saved_rows if path.is_dir() else READERS[path.suffix.lower()]
    some = False
    try:
        for row in reader(path):
            some = True
            yield row
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not some:
        raise DataError(f"{path} has no rows")


def _json_lines(path: Path) -> Iterator[Row | Unreadable]:
    size, done = path.stat().st_size, 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            done += len(line)
            text = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            if text.strip():
                # A file that still grows is longer than it was.
                yield _json_line(f"line {number}", text.rstrip(), min(done / size, 1.0))


def _json_line(place: str, line: bytes, share: float) -> Row | Unreadable:
    try:
        value: object = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Unreadable(place, f"not UTF-8 text: {error.reason} at byte {error.start + 1} of the line", share)
    except json.JSONDecodeError as error:
        return Unreadable(place, f"not JSON: {error.msg} at character {error.colno}", share)
    except RecursionError:
        return Unreadable(place, "JSON that is nested too deep", share)
    return _json_object(place, value, share)


def _json_list(path: Path) -> Iterator[Row | Unreadable]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        values: object = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON: {error.msg} at character {error.colno}") from error
    except RecursionError as error:
        raise DataError(f"{path} holds JSON that is nested too deep") from error
    if not isinstance(values, list):
        raise DataError(
            f"{path} holds {_kind(values)}, but must hold a list of objects", hint="one object a line is .jsonl"
        )
    for number, value in enumerate(values, start=1):
        yield _json_object(f"row {number}", value, number / len(values))


def _csv(path: Path) -> Iterator[Row | Unreadable]:
    csv.field_size_limit(LARGEST_CSV_FIELD)
    size = path.stat().st_size
    # What is not UTF-8 is kept as lone surrogates, so that it is found in its row.
    with path.open("rb") as raw, TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        while True:
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Unreadable(f"line {reader.reader.line_num}", f"not CSV: {error}", raw.tell() / size)
                continue
            yield _csv_row(f"line {reader.line_num}", values, len(reader.fieldnames or ()), raw.tell() / size)


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            total, number = file.metadata.num_rows, 0
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"row {number}", values, number / total)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a Parquet file: {str(error).splitlines()[0]}") from error


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
    return (Row(f"row {number}", value, number / len(saved)) for number, value in enumerate(saved, start=1))


READERS = {".jsonl": _json_lines, ".json": _json_list, ".csv": _csv, ".parquet": _parquet}


def _json_object(place: str, value: object, share: float) -> Row | Unreadable:
    if not isinstance(value, dict):
        return Unreadable(place, f"{_kind(value)}, but a row must be an object with named columns", share)
    return Row(place, value, share)


def _csv_row(place: str, values: dict[str, Any], num_fields: int, share: float) -> Row | Unreadable:
    if None in values or None in values.values():
        return Unreadable(place, f"not as many fields as the header's {num_fields}", share)
    if not all(is_unicode(value) for value in values.values()):
        return Unreadable(place, "not UTF-8 text", share)
    return Row(place, dict(values), share)


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8: a lone half of a surrogate pair, which JSON can spell, cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


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
