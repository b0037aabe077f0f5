"""The adapters of PEFT's own method comparison, as it published them (`truth/peft_experiments.toml`)."""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from planner.config.run_config import Dtype
from planner.step.adapter_cost import adapter_in_options
from planner.step.step_spec import Adapter

LONGEST_BATCH_TOKENS = 581
"""Tokens a row of the batch that the 99th percentile shows. The lengths are not published, so this number is inferred:
one for all rows, that at which the trace of plain LoRA of rank 32 (PEFT-033) reserves what was measured."""

EXPERIMENTS = Path(__file__).with_name("peft_experiments.toml")


class PeftExperiment(BaseModel):
    """One experiment: what PEFT was told, and what differs from the training of the others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: str = Field(description="its name in PEFT's repository")
    peft_type: str
    options: Mapping[str, Any] = Field(description="in PEFT's own names")
    num_trainable_parameters: int = Field(gt=0, description="as the harness counted them")
    adapter_dtype: Dtype = "float32"
    optimizer: str | None = Field(default=None, description="if not torch's AdamW: lora-fa also freezes lora_A")

    @property
    def adapter(self) -> Adapter:
        """The adapter of the step; targets are written out, so that no model is needed."""
        return adapter_in_options(self.peft_type, self.options, self.adapter_dtype, ())


@cache
def peft_experiments() -> dict[str, PeftExperiment]:
    """The experiments by the id of their row in `truth/runs.csv`."""
    tables = tomllib.loads(EXPERIMENTS.read_text("utf-8"))
    return {row: PeftExperiment.model_validate(table) for row, table in tables.items()}
