"""Memory that a run needs beside its tensors: allocator grain, workspaces, CUDA context (`overheads.toml`)."""

import tomllib
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

MIB = 1024**2
ComputeCapability = tuple[int, int]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Allocator(_Facts):
    """The constants of torch's caching allocator, in bytes."""

    block_bytes: int = Field(gt=0, description="grain of a request")
    small_request_bytes: int = Field(gt=0, description="largest request served from a small segment")
    small_segment_bytes: int = Field(gt=0, description="what a small segment takes from the driver")
    large_segment_bytes: int = Field(gt=0, description="what a shared large segment takes from the driver")
    own_segment_from_bytes: int = Field(gt=0, description="smallest request that gets a segment of its own")
    own_segment_rounding_bytes: int = Field(gt=0, description="grain of a segment of its own")
    source: str


class CublasWorkspace(_Facts):
    """What cuBLAS, or hipBLAS, holds for each pair of thread and stream, in bytes."""

    default_bytes: int = Field(gt=0)
    large_bytes: int = Field(gt=0)
    large_compute_capability_majors: tuple[int, ...]
    rocm_bytes: int = Field(gt=0)
    rocm_large_bytes: int = Field(gt=0)
    rocm_large_gfx_prefixes: tuple[str, ...]
    source: str

    def num_bytes(self, compute_capability: ComputeCapability | None, gfx_target: str | None) -> int:
        """Bytes of one workspace on such a card; on an unknown one the larger of the two of CUDA."""
        if gfx_target is not None:
            large = gfx_target.startswith(self.rocm_large_gfx_prefixes)
            return self.rocm_large_bytes if large else self.rocm_bytes
        if compute_capability is None or compute_capability[0] in self.large_compute_capability_majors:
            return self.large_bytes
        return self.default_bytes


class CarveOut(_Facts):
    """The share of the memory that the driver keeps, so that torch sees less than nvidia-smi prints."""

    fraction: float = Field(gt=0, lt=1, description="of the driver's total")
    at_most_mib: int = Field(gt=0, description="bound of the above")
    ecc_fraction: float = Field(gt=0, lt=1, description="of the memory chips, where ECC lives in them")
    source: str

    def torch_bytes(self, driver_bytes: int) -> int:
        """Bytes that torch is sure to see of a card whose driver reports `driver_bytes`."""
        return driver_bytes - min(int(driver_bytes * self.fraction), self.at_most_mib * MIB)

    def driver_bytes(self, board_bytes: int) -> int:
        """Bytes that the driver is sure to report of `board_bytes` of memory chips that also hold their ECC."""
        return board_bytes - int(board_bytes * self.ecc_fraction)


class SeenContext(_Facts):
    """What messages in public show of a card."""

    card: str
    mib: tuple[int, int] = Field(description="the least and the most")
    messages: int = Field(gt=0)


class _PlannedContext(_Facts):
    mib: int = Field(gt=0, description="to plan with")
    seen: tuple[SeenContext, ...] = ()
    note: str | None = None


class CardContext(_PlannedContext):
    """The context measured on these cards."""

    names: tuple[str, ...]


class GenerationContext(_PlannedContext):
    """The context of a generation: by compute capability, or by the start of the gfx target."""

    compute_capability: tuple[ComputeCapability, ...] = ()
    gfx_prefix: str | None = None

    def covers(self, compute_capability: ComputeCapability | None, gfx_target: str | None) -> bool:
        """Whether such a card belongs to this generation."""
        if gfx_target is not None:
            return self.gfx_prefix is not None and gfx_target.startswith(self.gfx_prefix)
        return compute_capability in self.compute_capability


class Context(_Facts):
    """Memory of a process outside the torch allocator: CUDA context, loaded kernels, library handles."""

    unknown_mib: int = Field(gt=0, description="for a card of which nothing is known")
    nccl_mib: int = Field(gt=0, description="what a process adds once it talks to other GPUs")
    source: str
    cards: tuple[CardContext, ...]
    generations: tuple[GenerationContext, ...]

    def num_bytes(self, name: str, compute_capability: ComputeCapability | None, gfx_target: str | None) -> int:
        """Bytes to plan with: measured on this card, else the highest of its generation, else of all."""
        measured = (card.mib for card in self.cards if name in card.names)
        covering = (row.mib for row in self.generations if row.covers(compute_capability, gfx_target))
        return next(measured, next(covering, self.unknown_mib)) * MIB


class Overheads(_Facts):
    """All tables of `overheads.toml`."""

    allocator: Allocator
    cublas_workspace: CublasWorkspace
    carve_out: CarveOut
    context: Context


@cache
def overheads() -> Overheads:
    """The facts of `overheads.toml`, read once."""
    return Overheads.model_validate(tomllib.loads(Path(__file__).with_name("overheads.toml").read_text("utf-8")))
