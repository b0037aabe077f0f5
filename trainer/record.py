"""The files of a run folder that keep what was predicted and measured. Needs no torch."""

import os
from pathlib import Path

from pydantic import BaseModel, ValidationError

from planner.run_record import RECORD_FILE, Prediction, Recovery, RunRecord
from profiles.errors import InputError

PREDICTION_FILE = "prediction.json"
RECOVERIES_FILE = "recoveries.jsonl"


def append_record(record: RunRecord, output_dir: Path) -> None:
    """Add `record` to the run folder's record file, on disk when this returns."""
    _append(record, output_dir / RECORD_FILE)


def read_records(output_dir: Path) -> list[RunRecord]:
    """The records of a run folder, oldest first; none if it has no record file. Raises InputError."""
    return [RunRecord.parse(line) for line in _lines(output_dir / RECORD_FILE)]


def append_recovery(recovery: Recovery, output_dir: Path) -> None:
    """Remember `recovery` for the record of the run, on disk when this returns."""
    _append(recovery, output_dir / RECOVERIES_FILE)


def read_recoveries(output_dir: Path) -> tuple[Recovery, ...]:
    """The recoveries of the run in this folder so far, oldest first."""
    return tuple(Recovery.model_validate_json(line) for line in _lines(output_dir / RECOVERIES_FILE))


def _append(part: BaseModel, path: Path) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(part.model_dump_json() + "\n")
        file.flush()
        os.fsync(file.fileno())


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line] if path.exists() else []


def read_prediction(path: Path) -> Prediction | None:
    """The prediction that the planner left at `path`; None if there is none. Raises InputError."""
    if not path.exists():
        return None
    try:
        return Prediction.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise InputError(f"{path} is no prediction: {error.errors()[0]['msg']}") from error
