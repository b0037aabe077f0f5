"""Training runs that somebody measured: rows of a CSV file in the columns of the truth file."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from planner.step.step_spec import StepLoss
from planner.units import MIB
from profiles.errors import DataError

Empty = BeforeValidator(lambda value: None if value == "" else value)


class MeasuredRun(BaseModel):
    """One row: a run with every knob stated and what it took. Empty cells are None: not stated."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    source: str
    gpu: str
    num_gpus: int
    parallel: str
    model: str
    method: Literal["full", "lora", "qlora", "peft"]
    lora_r: Annotated[int | None, Empty]
    lora_targets: str
    lora_dropout: Annotated[float | None, Empty]
    weight_dtype: Literal["fp32", "fp16", "bf16"]
    quantization: str
    double_quant: str
    kbit_upcast: str
    adapter_dtype: Annotated[Literal["fp32", "fp16", "bf16"] | None, Empty]
    autocast: str
    optimizer: str
    seq_len: int
    micro_batch: int
    checkpointing: Literal["none", "full"]
    attention: str
    loss: StepLoss
    output_alive: str
    versions: str
    metric: str
    peak_mib: Annotated[float | None, Empty]
    reserved_mib: Annotated[float | None, Empty]
    fits: Literal["yes", "no"]
    grade: Literal["A", "B"]

    @property
    def harness(self) -> str:
        """Who measured: the first part of the id."""
        return self.id.partition("-")[0]

    @property
    def allocated_bytes(self) -> int | None:
        """The measured peak of allocated memory, None where only reserved memory was measured or the run failed."""
        return round(self.peak_mib * MIB) if self.peak_mib is not None and self.metric == "max_allocated" else None

    @property
    def reserved_bytes(self) -> int | None:
        """The measured peak of reserved memory, None where it was not published or the run failed."""
        reserved_mib = self.reserved_mib if self.metric == "max_allocated" else self.peak_mib
        return round(reserved_mib * MIB) if reserved_mib is not None else None


def read_runs(path: Path) -> list[MeasuredRun]:
    """All rows of `path`. Raises DataError that names the line and the column of a bad cell."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(_rows(path, csv.DictReader(file)))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _rows(path: Path, reader: "csv.DictReader[str]") -> Iterator[MeasuredRun]:
    for row in reader:
        try:
            yield MeasuredRun.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            column = ".".join(str(part) for part in first["loc"])
            raise DataError(
                f"{path}, line {reader.line_num}: {column} is {first['input']!r}; {first['msg']}"
            ) from error
