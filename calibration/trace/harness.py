"""What the harness of a measured run does that is no property of a step (`truth/harnesses.toml`)."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

HARNESSES = Path(__file__).parents[1] / "truth" / "harnesses.toml"


class Harness(BaseModel):
    """How weights come onto the card, and the loop that trains. The fields are explained in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loop: Literal["trainer", "bare"] = "trainer"
    weights: Literal["placed", "moved"] = "placed"
    clips: bool = True
    output: Literal["step", "next"] = "step"
    empties: bool = False
    races: bool = False
    source: str = "this repository, trainer/"


TRAINER = Harness()
"""The trainer of this project, and others that are made of Transformers' Trainer."""


def harness_of(run_id: str) -> Harness:
    """The harness of a measured run by its id, of which it is the first part."""
    return _harnesses().get(run_id.partition("-")[0], TRAINER)


@cache
def _harnesses() -> dict[str, Harness]:
    tables = tomllib.loads(HARNESSES.read_text("utf-8"))
    return {name: Harness.model_validate(table) for name, table in tables.items()}
