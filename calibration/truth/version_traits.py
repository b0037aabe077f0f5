"""What follows for a step from the versions of the libraries that ran it (`truth/versions.toml`)."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from calibration.truth.measured_runs import MeasuredRun
from profiles.model import ModelProfile

VERSIONS = Path(__file__).with_name("versions.toml")


class VersionTrait(BaseModel):
    """Fields of the step that versions decide. The columns are explained in `truth/versions.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    versions: tuple[str, ...]
    model_types: tuple[str, ...] | None = None
    quantized: bool | None = None
    kbit_upcast: bool | None = None
    loss: tuple[str, ...] | None = None
    set: dict[str, Any]
    source: str

    def holds(self, run: MeasuredRun, model: ModelProfile) -> bool:
        """Whether the step of `run` has this trait."""
        return (
            any(version in run.versions for version in self.versions)
            and (self.model_types is None or model.model_type in self.model_types)
            and self.quantized in (None, run.quantization != "none")
            and self.kbit_upcast in (None, run.kbit_upcast == "yes")
            and (self.loss is None or run.loss in self.loss)
        )


def fields_by_version(run: MeasuredRun, model: ModelProfile) -> dict[str, Any]:
    """Fields of the step of `run`; a later trait wins over an earlier one."""
    return {name: value for trait in traits() if trait.holds(run, model) for name, value in trait.set.items()}


@cache
def traits() -> tuple[VersionTrait, ...]:
    """All traits, in the order of the file."""
    tables = tomllib.loads(VERSIONS.read_text("utf-8"))["trait"]
    return tuple(VersionTrait.model_validate(table) for table in tables)
