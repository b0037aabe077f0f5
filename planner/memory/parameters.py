"""Bytes of weights: the base, quantized or not, adapters, and the gradients that mirror what learns."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Literal

from planner.config.run_config import DTYPE_BYTES, Quantization
from planner.memory.tape import rounded
from planner.step.step_spec import Adapter, StepSpec
from profiles.architecture import Architecture, Block, Experts, Linear
from profiles.quantization import find_quantization, quantized_bytes


@dataclass(frozen=True, slots=True)
class Split:
    """Into how many parts tensors are split: between rows, as FSDP2 splits (torch 2.13 `_fsdp_param.py`), or anywhere,
    as FSDP1 and ZeRO split what they have made flat.
    """

    parts: int = 1
    by_rows: bool = False


WHOLE = Split()


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

    def share(self, split: Split) -> "Weights":
        """The largest part of each."""
        if split.parts == 1:
            return self
        if not split.by_rows:
            return replace(self, shape=(-(-self.elements // split.parts),))
        return replace(self, shape=(-(-self.shape[0] // split.parts), *self.shape[1:]))


def base_weight_bytes(architecture: Architecture, step: StepSpec) -> int:
    """Bytes of one card's share of the weights that are not quantized, float32 if k-bit preparation made them so."""
    return _unpacked_bytes(
        architecture, packed_kinds(step), DTYPE_BYTES[step.base_dtype], split_of(step, step.weight_shards)
    )


def packed_kinds(step: StepSpec) -> frozenset[str]:
    """Kinds of weights that bitsandbytes packs."""
    if step.quantization is None:
        return frozenset()
    return frozenset({"projection", "experts"} if step.experts_quantized else {"projection"})


def quantized_weight_bytes(architecture: Architecture, step: StepSpec) -> int:
    """Bytes that one card has of the packed weights, and of their block constants, which no engine shares or moves.

    The constants are attributes of a weight and no weights (bitsandbytes 0.50 `functional.py` QuantState).
    """
    if step.quantization is None:
        return 0
    whole = _packed_bytes(architecture, step.quantization, step.double_quant, step.experts_quantized)
    if step.weight_shards == 1:
        return whole
    values = _packed_values(architecture, step.quantization, step.experts_quantized)
    on_host = step.sharding is not None and step.sharding.weights_on_host
    return whole - values + (0 if on_host else values // step.weight_shards)


def trainable_weights(architecture: Architecture, adapter: Adapter | None, split: Split = WHOLE) -> tuple[Weights, ...]:
    """The tensors that get a gradient, or a share of each: the matrices of the adapter, or all that text passes."""
    if adapter:
        return tuple(weights.share(split) for weights in adapter_weights(architecture, adapter))
    return tuple(weights.share(split) for weights in base_weights(architecture) if weights.kind != "idle")


def trainable_itemsize(step: StepSpec) -> int:
    """Bytes of one element of the weights that learn."""
    return DTYPE_BYTES[step.adapter.dtype if step.adapter else step.base_dtype]


def gradient_bytes(architecture: Architecture, step: StepSpec) -> int:
    """Bytes of one card's gradients, in the dtype of the weights. Alive from the backward pass to the step."""
    split = trainable_split(step, step.sharding.gradient_shards if step.sharding else 1)
    return _trainable_bytes(architecture, step.adapter, trainable_itemsize(step), split)


def adapter_bytes(architecture: Architecture, step: StepSpec) -> int:
    """Bytes of one card's share of the adapter's weights: r x (in + out) for each adapted module."""
    if step.adapter is None:
        return 0
    split = trainable_split(step, step.weight_shards)
    return _trainable_bytes(architecture, step.adapter, trainable_itemsize(step), split)


def split_of(step: StepSpec, shards: int) -> Split:
    """How the engine of `step` splits into `shards`."""
    return Split(shards, by_rows=step.sharding.engine == "fsdp") if step.sharding and shards > 1 else WHOLE


def trainable_split(step: StepSpec, shards: int) -> Split:
    """The same for what learns, which some engines leave out."""
    left_out = step.adapter and step.sharding and step.sharding.replicates_adapter
    return WHOLE if left_out else split_of(step, shards)


@lru_cache(maxsize=1024)
def adapter_weights(architecture: Architecture, adapter: Adapter) -> tuple[Weights, ...]:
    """The two matrices of each adapted module."""
    return tuple(
        replace(matrix, count=count)
        for linear, count in architecture.linears()
        for matrix in adapter_matrices(linear, adapter)
    )


def adapter_matrices(linear: Linear, adapter: Adapter) -> tuple[Weights, ...]:
    """The two matrices of one module; none if it is not adapted."""
    if linear.name not in adapter.targets:
        return ()
    return Weights((adapter.r, linear.in_features), 1), Weights((linear.out_features, adapter.r), 1)


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
        yield from (
            replace(weights, count=weights.count * block.count) for weights in block_weights(block, architecture)
        )
    yield Weights((architecture.other_parameters,), 1, "idle")


def block_weights(block: Block, architecture: Architecture) -> Iterator[Weights]:
    """Every tensor of one layer of `block`."""
    for linear in block.linears:
        packs = architecture.quantizable and linear.quantizable
        yield from _of_linear(linear, 1, "projection" if packs else "other")
    for norm in block.norms:
        yield Weights((norm.num_parameters,), 1)
    yield Weights((block.attention.extra_parameters,), 1)
    if isinstance(block.mlp, Experts):
        yield from _of_linear(block.mlp.router, 1)
        for linear in block.mlp.expert.linears:
            yield Weights((block.mlp.num_experts, linear.num_parameters), 1, "experts")


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


def packed_layer_bytes(block: Block, architecture: Architecture, step: StepSpec) -> int:
    """Bytes of the packed values of one layer of `block`, without constants."""
    if step.quantization is None:
        return 0
    bits = find_quantization(step.quantization).bits
    weights = sum(linear.num_weights for linear in block.linears if architecture.quantizable and linear.quantizable)
    if step.experts_quantized and isinstance(block.mlp, Experts):
        weights += block.mlp.num_experts * sum(linear.num_weights for linear in block.mlp.expert.linears)
    return weights * bits // 8


@lru_cache(maxsize=256)
def _packed_values(architecture: Architecture, quantization: Quantization, experts_quantized: bool) -> int:
    """Bytes of the packed values alone."""
    bits = find_quantization(quantization).bits
    return sum(
        count * linear.num_weights * bits // 8 for linear, count in _quantized_linears(architecture, experts_quantized)
    )


@lru_cache(maxsize=1024)
def _trainable_bytes(architecture: Architecture, adapter: Adapter | None, itemsize: int, split: Split) -> int:
    return sum(weights.num_bytes(itemsize) for weights in trainable_weights(architecture, adapter, split))


@lru_cache(maxsize=1024)
def _unpacked_bytes(architecture: Architecture, packed: frozenset[str], itemsize: int, split: Split) -> int:
    kept = (weights for weights in base_weights(architecture) if weights.kind not in packed)
    return sum(weights.share(split).num_bytes(itemsize) for weights in kept)
