"""Why some predictions are off, found in the source of the libraries that ran (`truth/misses.toml`)."""

import tomllib
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from calibration.truth.error_table import Metric

MISSES = Path(__file__).with_name("misses.toml")


class Miss(BaseModel):
    """One cause, and the runs in which a trace is off for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Metric
    rows: tuple[str, ...] = Field(min_length=1)
    why: str
    source: str


@cache
def misses() -> tuple[Miss, ...]:
    """All causes."""
    return tuple(Miss.model_validate(table) for table in tomllib.loads(MISSES.read_text("utf-8"))["miss"])


def explained_rows(metric: Metric) -> set[str]:
    """The ids of the runs whose prediction of `metric` is off for a known cause."""
    return {row for miss in misses() if miss.metric == metric for row in miss.rows}
