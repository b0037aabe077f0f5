"""What an optimizer keeps for each trainable tensor, and what a step of it needs for a moment (`optimizers.toml`)."""

import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from math import ceil, prod
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from profiles.errors import ConfigError

FLOAT32_BYTES = 4
Shape = tuple[int, ...]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scratch(_Facts):
    """Tensors that live only inside a step: copies of all trainable parameters, or of one at a time."""

    of: Literal["all", "one"]
    parameter_copies: int = Field(default=0, ge=0, description="in the dtype of the parameter")
    float32_copies: int = Field(default=0, ge=0, description="where the parameter is float32")
    float32_copies_16bit: int = Field(default=0, ge=0, description="where the parameter is float16 or bfloat16")

    def num_bytes(self, elements: int, itemsize: int) -> int:
        """Bytes of the copies of `elements` elements of `itemsize` bytes each."""
        float32 = self.float32_copies if itemsize == FLOAT32_BYTES else self.float32_copies_16bit
        return elements * (self.parameter_copies * itemsize + float32 * FLOAT32_BYTES)


class Blocks(_Facts):
    """How 8-bit states are stored: one float32 scale for each block of a large enough tensor."""

    block_size: int = Field(gt=0, description="elements")
    min_block_elements: int = Field(gt=0, description="elements of the smallest parameter with 8-bit states")
    float32_embeddings: bool = Field(description="whether the states of embedding tables stay in float32")
    source: str


class Paging(_Facts):
    """Which states live in managed memory, which the driver may move to the host."""

    min_paged_elements: int = Field(gt=0)
    source: str


class OptimizerProfile(_Facts):
    """One optimizer: the states of a parameter and the scratch of a step."""

    name: str = Field(description="the value of `optim` in transformers")
    aliases: tuple[str, ...] = ()
    num_states: int = Field(ge=0, description="state tensors with as many elements as the parameter")
    state_dtype: Literal["parameter", "float32", "uint8"]
    factored: bool = Field(default=False, description="sums over rows and columns in place of a full state")
    paged: bool = Field(default=False, description="states of large tensors live in managed memory")
    num_scalars: int = Field(default=0, ge=0, description="float32 scalars on the GPU for each parameter")
    scratch: Scratch | None = None
    blocks: Blocks
    paging: Paging
    source: str

    def state_sizes(self, shape: Shape, itemsize: int, *, embedding: bool = False) -> tuple[int, ...]:
        """Bytes of each state tensor of one parameter of this shape, `itemsize` bytes an element.

        `embedding` says that the parameter is the weight of an embedding module, whose states may stay in float32.
        """
        scalars = (FLOAT32_BYTES,) * self.num_scalars
        if self.factored:
            return scalars + tuple(FLOAT32_BYTES * elements for elements in _factors(shape))
        elements = prod(shape)
        if self._in_blocks(elements, embedding):
            scales = FLOAT32_BYTES * ceil(elements / self.blocks.block_size)
            return scalars + (elements, scales) * self.num_states
        width = itemsize if self.state_dtype == "parameter" else FLOAT32_BYTES
        return scalars + (elements * width,) * self.num_states

    def state_bytes(self, shape: Shape, itemsize: int, *, embedding: bool = False) -> int:
        """Bytes of all states of one parameter, paged ones included."""
        return sum(self.state_sizes(shape, itemsize, embedding=embedding))

    def is_paged(self, elements: int) -> bool:
        """Whether the states of a parameter with so many elements live in managed memory."""
        return self.paged and elements >= self.paging.min_paged_elements

    def scratch_bytes(self, elements: Sequence[int], itemsize: int) -> int:
        """Bytes that one step holds for a moment, on top of states and gradients; `elements` of each parameter."""
        if self.scratch is None or not elements:
            return 0
        return self.scratch.num_bytes(sum(elements) if self.scratch.of == "all" else max(elements), itemsize)

    def _in_blocks(self, elements: int, embedding: bool) -> bool:
        if self.state_dtype != "uint8" or (embedding and self.blocks.float32_embeddings):
            return False
        return elements >= self.blocks.min_block_elements


def find_optimizer(name: str) -> OptimizerProfile:
    """The optimizer that transformers calls so.

    Raises:
        ConfigError: it is not described here.
    """
    by_name = {known: profile for profile in all_optimizers() for known in (profile.name, *profile.aliases)}
    if name in by_name:
        return by_name[name]
    nearest = get_close_matches(name, by_name, n=1, cutoff=0.5)
    question = f"; did you mean {nearest[0]}?" if nearest else ""
    raise ConfigError(
        f"optim '{name}' is not an optimizer that fitune plans for{question}", f"one of: {', '.join(by_name)}"
    )


@cache
def all_optimizers() -> tuple[OptimizerProfile, ...]:
    """Every optimizer of `optimizers.toml`."""
    tables = tomllib.loads(Path(__file__).with_name("optimizers.toml").read_text("utf-8"))
    shared = {"blocks": tables["blocks"], "paging": tables["paging"]}
    return tuple(
        OptimizerProfile.model_validate({"name": name} | row | shared) for name, row in tables["optimizers"].items()
    )


def _factors(shape: Shape) -> tuple[int, ...]:
    """Elements of the row and of the column sums; a vector keeps a full state."""
    if len(shape) < 2:
        return (prod(shape),)
    return (prod(shape[:-1]), prod(shape[:-2]) * shape[-1])
