"""What was predicted of a run and what it took: one line of JSON, complete enough to repeat and to learn from."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from planner.config.run_config import RunConfig
from profiles.errors import InputError, Moment
from profiles.model import ModelProfile

RECORD_FILE = "record.jsonl"
LOG_FILE = "log.jsonl"
LOCK_FILE = ".lock"

CPU = "CPU"
"""Stands in place of a card."""

Origin = Literal["own", "calibration", "imported"]
"""Launched here, measured here by `fitune calibrate`, or somebody else's."""

Status = Literal["completed", "interrupted", "failed"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Prediction(_Part):
    """What the planner expected of the run; the planner writes it, None is what it did not say."""

    allocated_bytes: int = Field(gt=0, description="peak of live tensors")
    reserved_bytes: int | None = Field(default=None, description="peak that torch's allocator holds")
    process_bytes: int | None = Field(default=None, description="peak that the driver reports for the process")
    interval_bytes: tuple[int, int] | None = Field(default=None, description="range of process_bytes")
    tokens_per_second: float | None = Field(default=None, description="tokens through the model, padding included")


class Measured(_Part):
    """What the run took; None is what this machine cannot tell."""

    allocated_bytes: int | None = Field(description="peak of live tensors: counted on a CPU, torch's own count on CUDA")
    reserved_bytes: int | None = Field(default=None, description="peak that torch's allocator held")
    process_bytes: int | None = Field(default=None, description="peak that the driver reported for the process")
    tokens_per_second: float | None = Field(default=None, description="tokens through the model, padding included")
    tokens_per_step: float | None = Field(default=None, description="mean of an optimizer step, padding included")
    phases: dict[str, int] = Field(default={}, description="peak of live tensors by phase of the step, in bytes")


class Environment(_Part):
    """The machine and the libraries."""

    gpu: str | None = Field(description="name of the card; None: the run was on a CPU")
    driver: str | None
    cuda: str | None
    python: str
    platform: str
    packages: dict[str, str] = Field(description="version by package")


class Result(_Part):
    """How the run ended."""

    status: Status
    steps: int = Field(ge=0, description="optimizer steps done, those before a resume included")
    max_steps: int = Field(description="optimizer steps planned")
    loss: float | None = Field(default=None, description="the last one logged")
    eval_loss: float | None = Field(default=None, description="the last one; None without evaluation data")
    seconds: float = Field(description="from the first step of this process to its last")


class Recovery(_Part):
    """One time that memory ended or a process was lost, and what the run gave up to go on."""

    time: str = Field(description="ISO 8601 in UTC")
    moment: Moment = Field(description="what the run was doing")
    lost: str | None = Field(default=None, description="the process that was killed; None: memory ended")
    step: int = Field(description="optimizer steps done by then")
    resumed_from: int = Field(description="step of the checkpoint that the run went on from; 0: from the start")
    changes: dict[str, tuple[Any, Any]] = Field(description="knobs that changed: before, after")


class RunRecord(_Part):
    """One run, complete enough to compare it with others and to repeat it."""

    time: str = Field(description="end of the run, ISO 8601 in UTC")
    config: RunConfig
    predicted: Prediction | None
    measured: Measured
    environment: Environment
    result: Result
    recoveries: tuple[Recovery, ...] = Field(
        default=(), description="the ends of memory and losses of a process that the run outlived"
    )

    @classmethod
    def parse(cls, line: str) -> Self:
        """The record in one line of JSON. Raises InputError."""
        try:
            return cls.model_validate_json(line)
        except ValidationError as error:
            raise InputError(
                f"a line of {RECORD_FILE} is no record of this version: {error.errors()[0]['msg']}"
            ) from error


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run with what its record does not say: the shape of its model, if that could be read, and where it was run.

    `card` is the card's name in the catalogue, or the driver's name of one that is not in it. An imported run has no
    folder.
    """

    record: RunRecord
    shape: ModelProfile | None
    card: str
    origin: Origin = "own"
    folder: str | None = None

    @property
    def digest(self) -> str:
        """The same for the same run, also where its record was made ready to be given away."""
        said = f"{self.record.time} {self.card} {self.record.measured.model_dump_json()}"
        return hashlib.sha256(said.encode()).hexdigest()[:16]


def method_of(config: RunConfig) -> str:
    """What runs are told apart by beside their card: the method, with the format of a quantized base."""
    return f"{config.method} {config.quantization}" if config.quantization else config.method
