"""A measured training step: one line of JSON, complete enough to be compared with any prediction. Needs no torch."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from planner.config.run_config import RunConfig
from planner.memory.verdict import Verdict
from planner.records.run_record import Environment, Measured, Prediction, Result, RunRecord, StoredRun
from planner.step.step_spec import StepSpec
from profiles.errors import InputError, RunError
from profiles.model import ModelProfile

RECORDS = Path(__file__).parent.with_name("records")

Contender = Literal["fitune", "trl", "transformers"]
"""Whose trainer runs the step: ours, or one that it is compared with."""

Outcome = Literal["ran", "out of memory", "failed"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Point(_Part):
    """What is to be measured: a run of a model with random weights, within a card or a part of it."""

    id: str = Field(description="the same for the same run on the same card within the same cap")
    model: ModelProfile = Field(description="the shape that is built")
    config: RunConfig = Field(description="the run; each batch has its full length")
    step: StepSpec = Field(description="the step that this is on the card, as the planner resolves it")
    trainer: Contender = Field(default="fitune", description="whose trainer")
    cap_bytes: int | None = Field(default=None, description="memory that the process may take; None: the whole card")
    allocator_limit_bytes: int | None = Field(
        default=None, description="the cap less the CUDA context: where torch's allocator is stopped"
    )


class Expected(_Part):
    """What was predicted, in bytes."""

    closed_form: Prediction
    verdict: Verdict | None = Field(description="of the closed form, on the card or the cap; None on a CPU")
    trace: Prediction | None = Field(default=None, description="of the traced step, if asked for")
    trace_error: str | None = Field(default=None, description="why there is no trace though it was asked for")


class PhasePeak(_Part):
    """The most that was held at any time of a phase, in bytes."""

    allocated_bytes: int = Field(description="live tensors")
    reserved_bytes: int | None = Field(default=None, description="what torch's allocator held; None on a CPU")


class Attempt(_Part):
    """What came of a point in the process that measured it."""

    outcome: Outcome
    ended_in: str | None = Field(default=None, description="phase in which it ended, where it did not run to its end")
    message: str | None = Field(default=None, description="why it did not run")
    measured: Measured | None = Field(default=None, description="None where nothing could be measured")
    reserved_phases: dict[str, int] = Field(default={}, description="peak that the allocator held, by phase, in bytes")
    seconds_per_step: float | None = Field(default=None, description="mean of an optimizer step after the first two")
    load_seconds: float | None = Field(default=None, description="to build, quantize and wrap the model")
    left_bytes: int = Field(default=0, description="still allocated after the point was cleaned up; 0 is as it must be")
    environment: Environment | None = Field(default=None, description="None where the process was killed")


class Measurement(_Part):
    """One point with what was predicted and what was measured."""

    time: str = Field(description="when it ended, ISO 8601 in UTC")
    point: Point
    expected: Expected
    attempt: Attempt

    @property
    def error(self) -> float | None:
        """How far the closed form lies above the measured allocated peak, as a share of it; None if it did not run."""
        measured = self.attempt.measured
        if self.attempt.outcome != "ran" or measured is None or not measured.allocated_bytes:
            return None
        return self.expected.closed_form.allocated_bytes / measured.allocated_bytes - 1


def stored_run(measurement: Measurement, card: str) -> StoredRun | None:
    """The measurement as a run that later plans learn from; None for one that teaches nothing about a launch on `card`.

    A cap makes the allocator give back what it would keep, and another trainer's step is another one.
    """
    point, attempt = measurement.point, measurement.attempt
    if attempt.outcome != "ran" or attempt.measured is None or attempt.environment is None:
        return None
    if point.cap_bytes or point.trainer != "fitune":
        return None
    steps = point.config.max_steps or 1
    seconds = steps * (attempt.seconds_per_step or 0.0)
    record = RunRecord(
        time=measurement.time,
        config=point.config,
        predicted=measurement.expected.closed_form,
        measured=attempt.measured,
        environment=attempt.environment,
        result=Result(status="completed", steps=steps, max_steps=steps, seconds=seconds),
    )
    return StoredRun(record, point.model, card, "calibration")


@contextmanager
def record_file(path: Path) -> Iterator[FileIO]:
    """The file of records, to append to by this process alone; a last line without an end is cut off.

    Raises InputError where it cannot be written, or another process measures into it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer, which would be written again, in vain, when the file of a full disk is closed.
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}", hint="name another file by --output") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process measures into {path}", hint="wait for its end") from None
        drop_torn_line(path)
        yield file


def append_measurement(measurement: Measurement, file: FileIO) -> None:
    """Add a line to `file`, on disk when this returns. Raises RunError where the disk is full or gone."""
    try:
        rest = measurement.model_dump_json().encode() + b"\n"
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except OSError as error:
        raise RunError(
            f"{file.name} cannot be written: {error.strerror}",
            hint="make room, and start again: what is in the file is not measured again",
        ) from error


def read_measurements(path: Path) -> list[Measurement]:
    """The measurements in a file, oldest first; none if there is no file. Raises InputError for a line that is none."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], start=1):
        try:
            found.append(Measurement.model_validate_json(line))
        except ValidationError as error:
            raise InputError(
                f"{path}, line {number}: no measurement of this version: {error.errors()[0]['msg']}",
                hint="name another file",
            ) from error
    return found


def drop_torn_line(path: Path) -> None:
    """Cut off a last line without an end, which a machine left that stopped while it was written."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
