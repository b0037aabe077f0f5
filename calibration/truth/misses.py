"""Why some predictions are off, as far as the source of what ran tells (`truth/misses.toml`)."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from calibration.truth.error_table import Metric

MISSES = Path(__file__).with_name("misses.toml")


class Miss(BaseModel):
    """One cause, and the runs in which a trace, or the closed form, is off for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Metric
    rows: tuple[str, ...] = Field(min_length=1)
    why: str
    source: str
    way: Literal["trace", "closed-form"] = "trace"


@cache
def misses(way: str = "trace") -> tuple[Miss, ...]:
    """All causes for which predictions made this way are off."""
    tables = tomllib.loads(MISSES.read_text("utf-8"))["miss"]
    return tuple(miss for miss in map(Miss.model_validate, tables) if miss.way == way)


def explained_rows(metric: Metric, way: str = "trace") -> set[str]:
    """The ids of the runs whose prediction of `metric` is off for a named cause."""
    return {row for miss in misses(way) if miss.metric == metric for row in miss.rows}
