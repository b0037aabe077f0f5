"""Which models overflow in float16 (`fp16_overflow.toml`)."""

import tomllib
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Overflow(BaseModel):
    """Types of model, in the words of the Hub's config.json, that overflow, and who found it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_types: tuple[str, ...]
    source: str


@cache
def overflows() -> tuple[Overflow, ...]:
    """The facts of `fp16_overflow.toml`, read once."""
    tables = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    return tuple(Overflow.model_validate(row) for row in tables["overflow"])


def fp16_overflow_source(model_type: str) -> str | None:
    """Who found that models of `model_type` overflow in float16; None if nobody is known to have."""
    return next((row.source for row in overflows() if model_type in row.model_types), None)
