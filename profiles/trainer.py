"""How a trainer turns the same run file into a different step (`trainers.toml`)."""

import tomllib
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from profiles.errors import ConfigError


class TrainerProfile(BaseModel):
    """One trainer. The fields are explained in `trainers.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    loss: Literal["config", "full", "fused", "liger"]
    fused: Literal["fused", "liger", "chunked"] = "fused"
    adapter_dtype: Literal["float32", "bfloat16", "float16"]
    quantized_adapter_dtype: Literal["float32", "bfloat16", "float16"]
    kbit_upcast: bool
    repeats_kv: bool
    joins_batch: bool = True
    float32_norms: bool = False
    preferences: bool = False
    source: str


def traits_of(trainer: str | TrainerProfile) -> TrainerProfile:
    """The traits of a trainer that is named, or that are given. Raises ConfigError with the known names."""
    return trainer if isinstance(trainer, TrainerProfile) else find_trainer(trainer)


def find_trainer(name: str) -> TrainerProfile:
    """The traits of a trainer. Raises ConfigError with the known names."""
    trainers = all_trainers()
    if name in trainers:
        return trainers[name]
    nearest = get_close_matches(name, trainers, n=1)
    question = f"; did you mean {nearest[0]}?" if nearest else ""
    raise ConfigError(f"trainer is {name}, which is not described{question}", f"one of: {', '.join(trainers)}")


@cache
def all_trainers() -> dict[str, TrainerProfile]:
    """Every trainer of `trainers.toml` by name."""
    tables = tomllib.loads(Path(__file__).with_name("trainers.toml").read_text("utf-8"))
    return {name: TrainerProfile.model_validate({"name": name} | table) for name, table in tables.items()}
