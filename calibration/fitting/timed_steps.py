"""Steps of which somebody measured the speed: published ones, and those of records."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from calibration.measuring.measurement import Measurement
from planner.config.run_config import Dtype
from planner.speed.step_time import step_time
from planner.step.step_spec import StepSpec
from profiles.errors import InputError
from profiles.fitted import Efficiencies
from profiles.gpu import GpuProfile
from profiles.gpu_catalog import find_gpu
from profiles.model import ModelProfile
from profiles.model_catalog import find_model

PUBLISHED = Path(__file__).parents[1] / "truth" / "throughput.csv"
STEPS = TypeAdapter(StepSpec)


@dataclass(frozen=True, slots=True)
class TimedStep:
    """A step and its measured tokens/s. `group` is left out as a whole where the fit is tested; `record` names it."""

    model: ModelProfile
    step: StepSpec
    gpu: GpuProfile
    accumulation: int
    tokens_per_second: float
    group: str
    record: str

    @property
    def dtype(self) -> Dtype:
        """That of the matrix products."""
        return self.step.compute_dtype

    @property
    def method(self) -> str:
        """full, lora, or qlora for an adapter on a quantized base."""
        return "full" if self.step.adapter is None else "qlora" if self.step.quantization else "lora"

    def predicted(self, reached: Efficiencies | None = None) -> float:
        """Tokens/s with the fitted shares of the rates, or with others."""
        speed = step_time(self.model, self.step, self.gpu, self.accumulation, reached=reached)
        assert speed is not None, "the rates of the card are known"
        return speed.tokens_per_second


def published_steps(path: Path = PUBLISHED) -> list[TimedStep]:
    """The published ones, each with all knobs stated."""
    with path.open(encoding="utf-8", newline="") as file:
        return [_published(row, path.name) for row in csv.DictReader(file)]


def recorded_steps(measurements: Iterable[Measurement], record: str) -> list[TimedStep]:
    """Those of a file of records that ran on a card of known speed."""
    found = []
    for one in measurements:
        point, measured = one.point, one.attempt.measured
        if one.attempt.outcome != "ran" or measured is None or not measured.tokens_per_second or not point.config.gpu:
            continue
        try:
            gpu = find_gpu(point.config.gpu)
            known = step_time(point.model, point.step, gpu)
        except InputError:
            continue
        if known is not None:
            config = point.config
            group = f"{gpu.name} {config.method} {config.model}"
            accumulation = config.gradient_accumulation_steps
            found.append(
                TimedStep(point.model, point.step, gpu, accumulation, measured.tokens_per_second, group, record)
            )
    return found


def _published(row: dict[str, str], record: str) -> TimedStep:
    adapter = {
        "r": row["lora_r"],
        "targets": row["lora_targets"].split(),
        "dropout": row["lora_dropout"],
        "dtype": row["adapter_dtype"],
    }
    step = STEPS.validate_python(
        {
            "micro_batch": row["micro_batch"],
            "seq_len": row["seq_len"],
            "weight_dtype": "bfloat16",
            "autocast": row["autocast"] or None,
            "adapter": adapter if row["lora_r"] else None,
            "quantization": row["quantization"] or None,
            "kbit_upcast": row["kbit_upcast"] == "yes",
            "experts_quantized": bool(row["quantization"]),
            "attention": row["attention"],
            "loss": row["loss"],
            "optimizer": row["optimizer"],
        }
    )
    family = row["id"].rpartition("-")[0]
    speed = float(row["tokens_per_second"])
    model, gpu = find_model(row["model"]), find_gpu(row["gpu"])
    return TimedStep(model, step, gpu, int(row["accumulation"]), speed, family, f"{record}: {family}")


def length_words(tokens: int) -> str:
    """The power of two that holds so many tokens."""
    return f"up to {1 << (tokens - 1).bit_length()}"
