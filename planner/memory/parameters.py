"""Bytes of weights: the base, quantized or not, adapters, and the gradients that mirror what learns."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal

from planner.memory.tape import rounded
from planner.run_config import DTYPE_BYTES, Quantization
from planner.step import Adapter, StepSpec
from profiles.architecture import Architecture, Experts, Linear
from profiles.quantization import quantized_bytes


@dataclass(frozen=True, slots=True)
class Weights:
    """`count` weight tensors of one shape.

    bitsandbytes packs projections, and experts that are Linear modules. Idle ones are in parts that text does not pass.
    """

    shape: tuple[int, ...]
    count: int
    kind: Literal["embedding", "projection", "experts", "idle", "other"] = "other"

    @property
    def elements(self) -> int:
        """Elements of one of them."""
        return prod(self.shape)

    def num_bytes(self, itemsize: int) -> int:
        """Bytes of all of them."""
        return self.count * rounded(self.elements * itemsize)


def base_weight_bytes(architecture: Architecture, step: StepSpec) -> int:
    """Bytes of the base weights that are not quantized, float32 if k-bit preparation made them so."""
    packed = {"projection", "experts"} if step.experts_quantized else {"projection"}
    return _unpacked_bytes(architecture, frozenset(packed if step.quantization else ()), DTYPE_BYTES[step.base_dtype])


def quantized_weight_bytes(architecture: Architecture, step: StepSpec) -> int:
    """Bytes of packed weights and their block constants."""
    if step.quantization is None:
        return 0
    return _packed_bytes(architecture, step.quantization, step.double_quant, step.experts_quantized)


def trainable_weights(architecture: Architecture, adapter: Adapter | None) -> tuple[Weights, ...]:
    """The tensors that get a gradient: the matrices of the adapter, or all that text passes."""
    if adapter:
        return adapter_weights(architecture, adapter)
    return tuple(weights for weights in base_weights(architecture) if weights.kind != "idle")


def trainable_itemsize(step: StepSpec) -> int:
    """Bytes of one element of the weights that learn."""
    return DTYPE_BYTES[step.adapter.dtype if step.adapter else step.base_dtype]


def gradient_bytes(architecture: Architecture, step: StepSpec) -> int:
    """Bytes of all gradients, in the dtype of the weights. Alive from the backward pass to the optimizer step."""
    return _trainable_bytes(architecture, step.adapter, trainable_itemsize(step))


def adapter_bytes(architecture: Architecture, step: StepSpec) -> int:
    """Bytes of the adapter's weights: r x (in + out) for each adapted module."""
    return gradient_bytes(architecture, step) if step.adapter else 0


@lru_cache(maxsize=1024)
def adapter_weights(architecture: Architecture, adapter: Adapter) -> tuple[Weights, ...]:
    """The two matrices of each adapted module."""
    return tuple(
        Weights(shape, count)
        for linear, count in architecture.linears()
        if linear.name in adapter.targets
        for shape in ((adapter.r, linear.in_features), (linear.out_features, adapter.r))
    )


@lru_cache(maxsize=256)
def base_weights(architecture: Architecture) -> tuple[Weights, ...]:
    """Every tensor of the base model; tied ones once."""
    return tuple(weights for weights in _base_weights(architecture) if weights.elements)


def _base_weights(architecture: Architecture) -> Iterator[Weights]:
    for table in (*architecture.embeddings, *architecture.position_biases):
        yield Weights((table.rows, table.columns), 1, "embedding")
    for linear in (*architecture.embedding_projections, *(() if architecture.tied else (architecture.head,))):
        yield from _of_linear(linear, 1)
    for norm in (*architecture.final_norms, *((architecture.embedding_norm,) if architecture.embedding_norm else ())):
        yield Weights((norm.num_parameters,), 1)
    for block in architecture.blocks:
        for linear in block.linears:
            packs = architecture.quantizable and linear.quantizable
            yield from _of_linear(linear, block.count, "projection" if packs else "other")
        for norm in block.norms:
            yield Weights((norm.num_parameters,), block.count)
        yield Weights((block.attention.extra_parameters,), block.count)
        if isinstance(block.mlp, Experts):
            yield from _of_linear(block.mlp.router, block.count)
            for linear in block.mlp.expert.linears:
                yield Weights((block.mlp.num_experts, linear.num_parameters), block.count, "experts")
    yield Weights((architecture.other_parameters,), 1, "idle")


def _of_linear(linear: Linear, count: int, kind: Literal["projection", "other"] = "other") -> Iterator[Weights]:
    yield Weights((linear.out_features, linear.in_features), count, kind)
    if linear.bias:
        yield Weights((linear.out_features,), count)


def _quantized_linears(architecture: Architecture, experts_quantized: bool) -> Iterator[tuple[Linear, int]]:
    """The matrices that bitsandbytes packs, with how often they occur."""
    if architecture.quantizable:
        yield from ((linear, count) for linear, count in architecture.linears() if linear.quantizable)
    for block in architecture.blocks:
        if experts_quantized and isinstance(block.mlp, Experts):
            for linear in block.mlp.expert.linears:
                yield linear, block.count * block.mlp.num_experts


@lru_cache(maxsize=256)
def _packed_bytes(
    architecture: Architecture, quantization: Quantization, double_quant: bool, experts_quantized: bool
) -> int:
    return sum(
        count * quantized_bytes(linear.num_weights, linear.out_features, quantization, double_quant)
        for linear, count in _quantized_linears(architecture, experts_quantized)
    )


@lru_cache(maxsize=1024)
def _trainable_bytes(architecture: Architecture, adapter: Adapter | None, itemsize: int) -> int:
    return sum(weights.num_bytes(itemsize) for weights in trainable_weights(architecture, adapter))


@lru_cache(maxsize=1024)
def _unpacked_bytes(architecture: Architecture, packed: frozenset[str], itemsize: int) -> int:
    return sum(weights.num_bytes(itemsize) for weights in base_weights(architecture) if weights.kind not in packed)
