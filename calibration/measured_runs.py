"""Training runs that somebody measured: rows of a CSV file in the columns of the truth file, as steps to estimate."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from planner.run_config import Dtype
from planner.step import Adapter, AttentionKernel, StepLoss, StepSpec
from planner.units import MIB
from profiles.build_architecture import architecture
from profiles.errors import DataError, UnsupportedError
from profiles.gpu import GpuProfile
from profiles.gpu_catalog import find_gpu
from profiles.model import ModelProfile
from profiles.model_catalog import find_model

Empty = BeforeValidator(lambda value: None if value == "" else value)
_DTYPES: dict[str, Dtype] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


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
    """The model, step and card that `run` measured.

    Raises an InputError that says what of the run is not described or not stated.
    """
    if run.num_gpus > 1:
        raise UnsupportedError(f"{run.num_gpus} GPUs; the closed form covers one")
    if run.method == "peft":
        raise UnsupportedError("a PEFT method other than LoRA; the closed form covers LoRA")
    if run.versions.startswith("ms-swift") and run.grade == "B":
        raise UnsupportedError("rows of real text below the stated length: reserved memory depends on how lengths vary")
    model = find_model(run.model)
    return model, _step(run, model), find_gpu(run.gpu)


_KERNELS: dict[str, AttentionKernel] = {
    "eager": "eager",
    "sdpa_efficient": "efficient",
    "sdpa_flash": "flash",
    "flash": "flash",
}

_SHIFTING_VERSIONS = ("transformers 4.4", "ms-swift Dec 2023")
"""Transformers before 4.50 shifted the logits, which copies them; later ones shift the labels."""


def _step(run: MeasuredRun, model: ModelProfile) -> StepSpec:
    old = any(version in run.versions for version in _SHIFTING_VERSIONS)
    return StepSpec(
        micro_batch=run.micro_batch,
        seq_len=run.seq_len,
        weight_dtype=_DTYPES[run.weight_dtype],
        adapter=_adapter(run, model),
        quantization=None if run.quantization == "none" else "nf4",
        double_quant=run.double_quant == "yes",
        kbit_upcast=run.kbit_upcast == "yes",
        autocast=None if run.autocast == "none" else _DTYPES[run.autocast],
        attention=_KERNELS[run.attention],
        expand_kv=run.attention == "sdpa_efficient",
        loss=run.loss,
        upcast_logits=not (old and model.model_type == "gpt_bigcode"),
        shift_logits=old,
        output_alive=run.output_alive == "yes",
        checkpointing=run.checkpointing == "full",
        optimizer="adamw_torch_fused" if run.optimizer == "adamw_fused" else "adamw_torch",
        experts_quantized=old,
    )


def _adapter(run: MeasuredRun, model: ModelProfile) -> Adapter | None:
    """The adapter; PEFT makes it float32 unless the row says otherwise. Targets that the model lacks have no effect."""
    if run.lora_r is None:
        return None
    stated = {_SHORT_NAMES.get(name, name) for name in run.lora_targets.split()}
    names = {linear.name for linear, _ in architecture(model).linears()}
    return Adapter(
        r=run.lora_r,
        targets=tuple(sorted(names if "all-linear" in stated else names & stated)),
        dropout=run.lora_dropout or 0.0,
        dtype=_DTYPES[run.adapter_dtype or "fp32"],
    )


_SHORT_NAMES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
