"""What a GPU supports, by compute capability or gfx target (`capabilities.toml`)."""

import tomllib
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Requirement(BaseModel):
    """The oldest CUDA generation and the AMD targets that have a capability."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_compute_capability: tuple[int, int]
    gfx_prefixes: tuple[str, ...]
    source: str

    def met_by(self, compute_capability: tuple[int, int], gfx_target: str | None) -> bool:
        """Whether such a card has the capability; an AMD card is judged by its target alone."""
        if gfx_target is not None:
            return gfx_target.startswith(self.gfx_prefixes)
        return compute_capability >= self.min_compute_capability


class Assumption(BaseModel):
    """The compute capability that a card of unknown make is taken to have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    compute_capability: tuple[int, int]
    source: str


class Capabilities(BaseModel):
    """All tables of `capabilities.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bf16: Requirement
    tf32: Requirement
    flash_attention: Requirement
    memory_efficient_attention: Requirement
    fp8: Requirement
    int8: Requirement
    bnb_4bit: Requirement
    assumed: Assumption


@cache
def capabilities() -> Capabilities:
    """The facts of `capabilities.toml`, read once."""
    return Capabilities.model_validate(tomllib.loads(Path(__file__).with_name("capabilities.toml").read_text("utf-8")))
