"""A machine that a cloud rents out: its cards, its memory, its network, its price. One row of `instances.toml`."""

import tomllib
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from profiles.gpu import GIB

GIGABIT_BYTES = 125e6
"""Bytes of a gigabit."""


class Instance(BaseModel):
    """What is known of a machine; None where no source was read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="as the cloud calls it")
    gpu: str = Field(description="name of a card in gpus/*.toml")
    num_gpus: int = Field(gt=0)
    memory_gib: float | None = Field(None, gt=0, description="main memory, GiB")
    network_gbps: float | None = Field(None, gt=0, description="to other machines, Gbit/s")
    usd_per_hour: float | None = Field(None, gt=0, description="of the whole machine, on demand")
    date: str | None = Field(None, description="when the price was read")
    sources: tuple[str, ...] = Field(min_length=1, description="keys of [sources]")

    @property
    def memory_bytes(self) -> int | None:
        """Main memory."""
        return int(self.memory_gib * GIB) if self.memory_gib else None

    @property
    def network_bytes_per_s(self) -> float | None:
        """Rate to other machines."""
        return self.network_gbps * GIGABIT_BYTES if self.network_gbps else None


def find_instance(name: str) -> Instance | None:
    """The machine of this name, in any case; None if it is none of them."""
    return next((one for one in all_instances() if one.name.lower() == name.lower()), None)


@cache
def all_instances() -> tuple[Instance, ...]:
    """Every machine of `instances.toml`."""
    tables = tomllib.loads(Path(__file__).with_name("instances.toml").read_text("utf-8"))
    return tuple(Instance.model_validate(row) for row in tables["instance"])
