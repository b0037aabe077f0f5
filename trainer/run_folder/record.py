"""The files of a run folder that keep what was predicted and measured. Needs no torch."""

import os
from pathlib import Path

from pydantic import BaseModel, ValidationError

from planner.records.run_record import CPU, RECORD_FILE, Prediction, Recovery, RunRecord, StoredRun
from planner.records.run_store import remember, store_path
from profiles.errors import InputError
from profiles.gpu_catalog import gpus_by_nvml_name
from profiles.model_catalog import resolve_model

PREDICTION_FILE = "prediction.json"
RECOVERIES_FILE = "recoveries.jsonl"


def append_record(record: RunRecord, output_dir: Path) -> None:
    """Add `record` to the run folder's record file, on disk when this returns."""
    _append(record, output_dir / RECORD_FILE)


def remember_run(record: RunRecord, output_dir: Path) -> None:
    """Keep `record` in the store of runs as well, where later plans learn from it. Raises StoreError."""
    path = store_path()
    if path is None:
        return
    card = record.environment.gpu
    try:
        shape = resolve_model(record.config.model).profile
    except InputError:
        # Not described, or out of reach: the run is listed, and nothing is learned from it.
        shape = None
    run = StoredRun(record, shape, card_name(card, record.config.gpu), folder=str(output_dir.absolute()))
    remember([run], path)


def card_name(device: str | None, planned: str | None) -> str:
    """The name in the catalogue of a card that torch calls `device` (None: the CPU).

    Where several cards are called so, it is the one that was `planned`.
    """
    if device is None:
        return CPU
    alike = [gpu.name for gpu in gpus_by_nvml_name(device)]
    return planned if planned in alike else alike[0] if alike else device


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
