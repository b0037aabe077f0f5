"""How fast the cards of a run talk to each other, to their host and to other machines (`interconnect.toml`)."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from profiles.gpu import GpuProfile


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PcieGeneration(_Facts):
    """Cards from this compute capability on have this rate."""

    since: tuple[int, int]
    bytes_per_s: float = Field(gt=0, description="sixteen lanes, one way")


class Pcie(_Facts):
    """The bus between cards and host."""

    generations: tuple[PcieGeneration, ...]
    amd_bytes_per_s: float = Field(gt=0)
    share: float = Field(gt=0, le=1, description="of the rate that collectives reach")
    source: str


class Nvlink(_Facts):
    """Links between cards."""

    switched_bytes_per_s: float = Field(gt=0, description="least rate of cards that are all joined, both ways")
    share: float = Field(gt=0, le=1, description="of the rate one way that collectives reach")
    source: str


class Network(_Facts):
    """Links between machines."""

    assumed_bytes_per_s: float = Field(gt=0, description="of one machine, where its own is not known")
    share: float = Field(gt=0, le=1)
    source: str


class HostMemory(_Facts):
    """The main memory of a machine."""

    bytes_per_s: float = Field(gt=0)
    source: str


class InterconnectFacts(_Facts):
    """All tables of interconnect.toml."""

    pcie: Pcie
    nvlink: Nvlink
    network: Network
    host_memory: HostMemory


@dataclass(frozen=True, slots=True)
class Links:
    """Rates that are reached, in bytes/s one way: of one card to the others of its machine, of one card to the host, of
    one machine to the others, and of host memory.
    """

    cards: float
    host: float
    machines: float
    host_memory: float


def links_of(gpu: GpuProfile, network_bytes_per_s: float | None = None) -> Links:
    """The links of machines with such cards; `network_bytes_per_s` is the rate of one machine's, if it is known."""
    facts = interconnect_facts()
    bus = _bus_bytes_per_s(gpu, facts.pcie)
    joined = gpu.nvlink_bytes_per_s is not None and gpu.nvlink_bytes_per_s >= facts.nvlink.switched_bytes_per_s
    return Links(
        cards=(gpu.nvlink_bytes_per_s or 0) / 2 * facts.nvlink.share if joined else bus * facts.pcie.share,
        host=bus * facts.pcie.share,
        machines=(network_bytes_per_s or facts.network.assumed_bytes_per_s) * facts.network.share,
        host_memory=facts.host_memory.bytes_per_s,
    )


def _bus_bytes_per_s(gpu: GpuProfile, pcie: Pcie) -> float:
    if gpu.gfx_target is not None:
        return pcie.amd_bytes_per_s
    capability = gpu.compute_capability or (0, 0)
    return max(row.bytes_per_s for row in pcie.generations if row.since <= capability)


@cache
def interconnect_facts() -> InterconnectFacts:
    """The facts of interconnect.toml, read once."""
    return InterconnectFacts.model_validate(
        tomllib.loads(Path(__file__).with_name("interconnect.toml").read_text("utf-8"))
    )
