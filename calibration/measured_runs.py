"""Training runs that somebody measured: rows of a CSV file in the columns of the truth file, as steps to estimate."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from planner.step import Adapter, AttentionKernel, StepLoss, StepSpec
from planner.units import MIB
from profiles.errors import DataError
from profiles.gpu import GpuProfile
from profiles.gpu_catalog import find_gpu
from profiles.model import ModelProfile
from profiles.model_catalog import find_model

Empty = BeforeValidator(lambda value: None if value == "" else value)
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


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

    @property
    def harness(self) -> str:
        """Who measured: the first part of the id."""
        return self.id.partition("-")[0]

    @property
    def measured_bytes(self) -> int | None:
        """The peak in bytes by `metric`, None for a run that failed."""
        return round(self.peak_mib * MIB) if self.peak_mib is not None else None


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


def question(run: MeasuredRun) -> tuple[ModelProfile, StepSpec, GpuProfile]:
    """The model, step and card that `run` measured. Raises an InputError for what is not described."""
    return find_model(run.model), _step(run), find_gpu(run.gpu)


_KERNELS: dict[str, AttentionKernel] = {
    "eager": "eager",
    "sdpa_efficient": "efficient",
    "sdpa_flash": "flash",
    "flash": "flash",
}


def _step(run: MeasuredRun) -> StepSpec:
    return StepSpec(
        micro_batch=run.micro_batch,
        seq_len=run.seq_len,
        weight_dtype=DTYPES[run.weight_dtype],  # type: ignore[arg-type]
        adapter=_adapter(run),
        quantization="nf4" if run.quantization != "none" else None,
        double_quant=run.double_quant == "yes",
        kbit_upcast=run.kbit_upcast == "yes",
        autocast=DTYPES.get(run.autocast),  # type: ignore[arg-type]
        attention=_KERNELS[run.attention],
        expand_kv=run.attention == "sdpa_efficient",
        loss=run.loss,
        upcast_logits="bigcode" not in run.model,
        shift_logits="transformers 4.4" in run.versions or "2023" in run.versions,
        output_alive=run.output_alive == "yes",
        checkpointing=run.checkpointing == "full",
        optimizer="adamw_torch_fused" if run.optimizer == "adamw_fused" else "adamw_torch",
        experts_quantized=True,
    )


def _adapter(run: MeasuredRun) -> Adapter | None:
    if run.lora_r is None:
        return None
    return Adapter(
        r=run.lora_r,
        targets=tuple(run.lora_targets.replace(";", " ").split()),
        dropout=run.lora_dropout or 0.0,
        dtype=DTYPES[run.adapter_dtype or "fp32"],  # type: ignore[arg-type]
    )
