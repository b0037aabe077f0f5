"""What a model computes for one token: products, attention, and the widths of what lies between."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from planner.config.run_config import Objective
from planner.step.network import network
from profiles.architecture import Architecture, Attention, Block, Experts, Linear, Mlp, Norm
from profiles.model import ModelProfile
from profiles.parameter_counts import parameter_counts


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Attention of all layers of one kind. `width` is heads x (head_dim + value_head_dim) over those layers."""

    num_heads: int
    width: int
    window: int | None
    causal: bool

    def keys(self, seq_len: int, skip_masked: bool) -> float:
        """Keys that a query meets on average; with `skip_masked` only those that it may see."""
        if not (skip_masked and self.causal):
            return float(seq_len)
        window = min(self.window or seq_len, seq_len)
        return window - window * (window - 1) / (2 * seq_len)


@dataclass(frozen=True, slots=True)
class Work:
    """Sums over all layers of a model; widths are elements a token.

    `weights` are those of all matrices in the layers, `active_weights` those that one token meets, `linear_weights`
    those in Linear modules (fused experts are none). `adapter_width` times a rank is the number of adapter weights.
    """

    num_layers: int
    hidden_size: int
    vocabulary: int
    num_parameters: int
    weights: int
    active_weights: int
    linear_weights: int
    head_weights: int
    linear_inputs: int
    linear_outputs: int
    num_linears: int
    num_adapters: int
    adapter_inputs: int
    adapter_outputs: int
    float32_norms: int
    plain_norms: int
    residuals: int
    rotary: int
    gated_activations: int
    plain_activations: int
    attention_outputs: int
    attentions: tuple[AttentionGroup, ...]

    @property
    def adapter_width(self) -> int:
        """Sum of the inputs and outputs of all adapted modules."""
        return self.adapter_inputs + self.adapter_outputs


@lru_cache(maxsize=256)
def count_work(model: ModelProfile, adapted: tuple[str, ...], objective: Objective = "sft") -> Work:
    """The work of `model` under `objective`, with adapters on the Linear modules named in `adapted`."""
    parts = network(model, objective)
    targets = [(linear, count) for linear, count in parts.linears() if linear.name in adapted]
    return Work(
        num_layers=parts.num_layers,
        hidden_size=model.hidden_size,
        vocabulary=parts.head.out_features,
        num_parameters=parameter_counts(parts).total - parts.other_parameters,
        weights=_total(parts, lambda block: _weights(block, active=False)),
        active_weights=_total(parts, lambda block: _weights(block, active=True)),
        linear_weights=sum(linear.num_weights * count for linear, count in parts.linears()),
        head_weights=parts.head.num_weights,
        linear_inputs=sum(linear.in_features * count for linear, count in parts.linears()),
        linear_outputs=sum(linear.out_features * count for linear, count in parts.linears()),
        num_linears=sum(count for _, count in parts.linears()),
        num_adapters=sum(count for _, count in targets),
        adapter_inputs=sum(linear.in_features * count for linear, count in targets),
        adapter_outputs=sum(linear.out_features * count for linear, count in targets),
        float32_norms=_norm_width(parts, upcast=True),
        plain_norms=_norm_width(parts, upcast=False),
        residuals=_total(parts, lambda block: 2 * model.hidden_size),
        rotary=_total(parts, lambda block: _rotary_width(block.attention)),
        gated_activations=_total(parts, lambda block: _activation_width(block, gated=True)),
        plain_activations=_total(parts, lambda block: _activation_width(block, gated=False)),
        attention_outputs=_total(parts, lambda block: block.attention.output.in_features),
        attentions=tuple(_attention_groups(parts)),
    )


def _total(parts: Architecture, of_layer: Callable[[Block], int]) -> int:
    return sum(of_layer(block) * block.count for block in parts.blocks)


def _linear_weights(linears: Iterable[Linear]) -> int:
    return sum(linear.num_weights for linear in linears)


def _weights(block: Block, *, active: bool) -> int:
    """Matrix elements of one layer; `active` counts the experts of one token only."""
    weights = _linear_weights(block.linears)
    if isinstance(block.mlp, Experts):
        experts = block.mlp.num_experts_per_tok if active else block.mlp.num_experts
        weights += block.mlp.router.num_weights + experts * _linear_weights(block.mlp.expert.linears)
    return weights


def _norm_width(parts: Architecture, *, upcast: bool) -> int:
    """Elements that pass norms; one that works on single heads passes all of them."""
    return _total(
        parts, lambda block: sum(_norm_elements(block, norm) for norm in block.norms if norm.upcast == upcast)
    )


def _norm_elements(block: Block, norm: Norm) -> int:
    if norm.size != block.attention.head_dim:
        return norm.size
    is_query = norm is block.attention.norms[0]
    return norm.size * (block.attention.num_heads if is_query else block.attention.num_kv_heads)


def _rotary_width(attention: Attention) -> int:
    return attention.rotary_dim * (attention.num_heads + attention.num_kv_heads)


def _activation_width(block: Block, *, gated: bool) -> int:
    mlps: tuple[tuple[Mlp, int], ...] = (
        ((block.mlp.expert, block.mlp.num_experts_per_tok), *(((block.mlp.shared, 1),) if block.mlp.shared else ()))
        if isinstance(block.mlp, Experts)
        else ((block.mlp, 1),)
    )
    return sum(mlp.intermediate_size * times for mlp, times in mlps if mlp.gated == gated)


def _attention_groups(parts: Architecture) -> Iterator[AttentionGroup]:
    decodes = any(block.cross_attention for block in parts.blocks)
    for block in parts.blocks:
        causal = not decodes or block.cross_attention is not None
        yield _attention_group(block.attention, block.count, causal)
        if block.cross_attention:
            yield _attention_group(block.cross_attention, block.count, causal=False)


def _attention_group(attention: Attention, count: int, causal: bool) -> AttentionGroup:
    num_heads = attention.num_heads * count
    width = num_heads * (attention.head_dim + attention.value_head_dim)
    return AttentionGroup(num_heads, width, attention.window, causal)
