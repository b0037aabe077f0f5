"""From a model profile to its architecture: the numbers of the config put into the traits of its `model_type`."""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from profiles.architecture import Architecture, Attention, Block, Embedding, Experts, Linear, Mlp, Norm, ScoreBias
from profiles.architecture_traits import ArchitectureTraits, ExpertTraits, traits_of_model
from profiles.errors import InputError
from profiles.model import ModelProfile

_SCORE_BIAS: dict[str, ScoreBias] = {"alibi": "alibi", "relative": "relative"}


@lru_cache(maxsize=512)
def architecture(model: ModelProfile) -> Architecture:
    """All parts of `model` with their shapes. Raises UnsupportedError if its `model_type` is not described."""
    traits = traits_of_model(model)
    embedding_width = model.word_embed_proj_dim or model.hidden_size
    return Architecture(
        embeddings=_embeddings(model, traits, embedding_width),
        blocks=_encoder_and_decoder(model, traits) if model.is_encoder_decoder else _decoder(model, traits),
        final_norms=_final_norms(model, traits),
        head=Linear(traits.head.name, embedding_width, model.vocab_size, traits.head.bias),
        tied=model.tie_word_embeddings,
        embedding_projections=_embedding_projections(model, traits, embedding_width),
        embedding_norm=_norm(traits, traits.norms.embedding, model.hidden_size),
        position_biases=_position_biases(model, traits),
        logit_softcap=model.final_logit_softcapping,
        upcasts_logits=traits.upcasts_logits,
        scales_embedding="embedding" in traits.scales,
        scales_logits="logits" in traits.scales,
        attention_codes=traits.attention_codes,
        linear_class=traits.linear_class,
        float32_modules=traits.float32_modules,
        other_parameters=model.num_other_parameters,
        buffer_bytes=_buffer_bytes(model, traits),
    )


@dataclass(frozen=True, slots=True)
class _LayerKind:
    """What may differ from layer to layer of one decoder."""

    slides: bool = False
    rotary: bool = True
    experts: bool = False

    def name_among(self, kinds: list["_LayerKind"]) -> str:
        """A name that tells this kind from the others of its model."""
        words = {
            "slides": "sliding" if self.slides else "full",
            "rotary": "rotary" if self.rotary else "no_rope",
            "experts": "experts" if self.experts else "dense",
        }
        differing = [word for field, word in words.items() if len({getattr(kind, field) for kind in kinds}) > 1]
        return "_".join([*differing, "layer"])


def _decoder(model: ModelProfile, traits: ArchitectureTraits) -> tuple[Block, ...]:
    counts = Counter(_layer_kind(model, traits, index) for index in range(model.num_hidden_layers))
    kinds = list(counts)
    return tuple(_block(model, traits, kind, kind.name_among(kinds), count) for kind, count in counts.items())


def _layer_kind(model: ModelProfile, traits: ArchitectureTraits, index: int) -> _LayerKind:
    interval = model.no_rope_layer_interval
    return _LayerKind(
        slides=model.sliding_window is not None and _slides(model, traits, index),
        rotary=interval is None or (index + 1) % interval != 0,
        experts=traits.experts is not None and index >= (model.first_k_dense_replace or 0),
    )


def _slides(model: ModelProfile, traits: ArchitectureTraits, index: int) -> bool:
    if model.layer_types is not None:
        return model.layer_types[index] == "sliding_attention"
    if model.sliding_window_pattern is not None:
        return (index + 1) % model.sliding_window_pattern != 0
    return traits.layer_pattern[index % len(traits.layer_pattern)] == "sliding_attention"


def _encoder_and_decoder(model: ModelProfile, traits: ArchitectureTraits) -> tuple[Block, ...]:
    encoder = _block(model, traits, _LayerKind(), "encoder", model.num_hidden_layers)
    decoder = _block(model, traits, _LayerKind(), "decoder", model.num_decoder_layers or 0, cross=True)
    return encoder, decoder


def _block(
    model: ModelProfile, traits: ArchitectureTraits, kind: _LayerKind, name: str, count: int, cross: bool = False
) -> Block:
    names, width = traits.norms, model.hidden_size
    return Block(
        name=name,
        count=count,
        attention=_attention(model, traits, kind),
        mlp=_experts(model, traits, traits.experts) if traits.experts and kind.experts else _dense_mlp(model, traits),
        norm_before_attention=_norm(traits, names.before_attention, width),
        norm_after_attention=_norm(traits, names.after_attention, width),
        norm_before_mlp=_norm(traits, names.before_mlp, width),
        norm_after_mlp=_norm(traits, names.after_mlp, width),
        parallel=traits.parallel,
        norms_after_residual=traits.norms_after_residual,
        cross_attention=_cross_attention(model, traits) if cross else None,
        norm_before_cross_attention=_norm(traits, names.before_cross_attention, width) if cross else None,
        dropout=traits.dropout,
        named_to_the_end=traits.named_to_the_end,
        scales_residual="residual" in traits.scales,
    )


def _head_dim(model: ModelProfile) -> int:
    return model.head_dim or model.hidden_size // model.num_attention_heads


def _rotary_dim(model: ModelProfile, traits: ArchitectureTraits) -> int:
    if traits.attention.positions != "rotary":
        return 0
    if model.rotary_dim is not None:
        return model.rotary_dim
    return int(_head_dim(model) * (model.partial_rotary_factor or traits.attention.rotary_factor))


def _attention(model: ModelProfile, traits: ArchitectureTraits, kind: _LayerKind) -> Attention:
    if model.kv_lora_rank is not None:
        return _latent_attention(model, traits, model.kv_lora_rank)
    names, head_dim = traits.attention, _head_dim(model)
    query_width, kv_width = model.num_attention_heads * head_dim, model.num_key_value_heads * head_dim
    widths = (query_width, kv_width, kv_width) if len(names.inputs) == 3 else (query_width + 2 * kv_width,)
    return Attention(
        name=names.name,
        inputs=tuple(
            Linear(name, model.hidden_size, width, names.qkv_bias)
            for name, width in zip(names.inputs, widths, strict=True)
        ),
        output=Linear(names.output, query_width, model.hidden_size, names.out_bias),
        num_heads=model.num_attention_heads,
        num_kv_heads=model.num_key_value_heads,
        head_dim=head_dim,
        value_head_dim=head_dim,
        rotary_dim=_rotary_dim(model, traits) if kind.rotary else 0,
        window=model.sliding_window if kind.slides else None,
        softcap=model.attn_logit_softcapping,
        norms=_qk_norms(traits, head_dim, query_width, kv_width),
        score_bias=_SCORE_BIAS.get(names.positions),
        eager_scores=names.eager_scores,
        broadcasts_kv=names.broadcasts_kv,
        rotates_apart=names.rotates_apart,
        scales_query=names.scales_query,
        extra_parameters=model.num_attention_heads if names.sinks else 0,
    )


def _qk_norms(traits: ArchitectureTraits, head_dim: int, query_width: int, kv_width: int) -> tuple[Norm, ...]:
    if traits.attention.qk_norm is None:
        return ()
    sizes = (head_dim, head_dim) if traits.attention.qk_norm == "head" else (query_width, kv_width)
    norms = (_norm(traits, traits.norms.query, sizes[0]), _norm(traits, traits.norms.key, sizes[1]))
    return tuple(norm for norm in norms if norm)


def _latent_attention(model: ModelProfile, traits: ArchitectureTraits, kv_lora_rank: int) -> Attention:
    names, bias = traits.attention, traits.attention.qkv_bias
    rope_dim = _needed(model, "qk_rope_head_dim")
    nope_dim, value_dim = _needed(model, "qk_nope_head_dim"), _needed(model, "v_head_dim")
    heads = model.num_attention_heads
    query_name, down_name, up_name = names.inputs
    query_width = heads * (nope_dim + rope_dim)
    query: tuple[Linear, ...] = (Linear(query_name, model.hidden_size, query_width),)
    norms = [_norm(traits, traits.norms.key_value_latent, kv_lora_rank)]
    if model.q_lora_rank is not None and names.low_rank_query is not None:
        down, up = names.low_rank_query
        query = (
            Linear(down, model.hidden_size, model.q_lora_rank, bias),
            Linear(up, model.q_lora_rank, query_width),
        )
        norms.insert(0, _norm(traits, traits.norms.query_latent, model.q_lora_rank))
    return Attention(
        name=names.name,
        inputs=(
            *query,
            Linear(down_name, model.hidden_size, kv_lora_rank + rope_dim, bias),
            Linear(up_name, kv_lora_rank, heads * (nope_dim + value_dim)),
        ),
        output=Linear(names.output, heads * value_dim, model.hidden_size, names.out_bias),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=nope_dim + rope_dim,
        value_head_dim=value_dim,
        rotary_dim=rope_dim,
        norms=tuple(norm for norm in norms if norm),
        eager_scores=names.eager_scores,
        kv_lora_rank=kv_lora_rank,
    )


def _cross_attention(model: ModelProfile, traits: ArchitectureTraits) -> Attention | None:
    names, width = traits.attention, model.num_attention_heads * _head_dim(model)
    if names.cross is None:
        return None
    return Attention(
        name=names.cross,
        inputs=tuple(Linear(name, model.hidden_size, width, names.qkv_bias) for name in names.inputs),
        output=Linear(names.output, width, model.hidden_size, names.out_bias),
        num_heads=model.num_attention_heads,
        num_kv_heads=model.num_attention_heads,
        head_dim=_head_dim(model),
        value_head_dim=_head_dim(model),
        eager_scores=names.eager_scores,
        cross=True,
    )


def _mlp(model: ModelProfile, traits: ArchitectureTraits, name: str, width: int) -> Mlp:
    names = traits.mlp
    doubled = names.gated and len(names.inputs) == 1
    return Mlp(
        name=name,
        inputs=tuple(Linear(inp, model.hidden_size, width * (1 + doubled), names.bias) for inp in names.inputs),
        output=Linear(
            names.output, width, model.hidden_size, names.bias, quantizable=names.output not in traits.float32_modules
        ),
        gated=names.gated,
        activation=model.hidden_act or names.activation,
        inline=names.inline,
    )


def _dense_mlp(model: ModelProfile, traits: ArchitectureTraits) -> Mlp:
    width = model.intermediate_size // traits.mlp.intermediate_divisor
    return _mlp(model, traits, traits.mlp.name, width)


def _experts(model: ModelProfile, traits: ArchitectureTraits, names: ExpertTraits) -> Experts:
    width, num_experts = model.moe_intermediate_size or model.intermediate_size, _needed(model, "num_experts")
    expert = Mlp(
        name=names.name,
        inputs=(Linear("gate_up_proj", model.hidden_size, 2 * width, names.bias),),
        output=Linear("down_proj", width, model.hidden_size, names.bias),
        gated=True,
        activation=names.activation or model.hidden_act or traits.mlp.activation,
    )
    shared_width = width * (model.n_shared_experts or 0)
    return Experts(
        name=traits.mlp.name,
        router=Linear(names.router, model.hidden_size, num_experts, names.bias),
        expert=expert,
        num_experts=num_experts,
        num_experts_per_tok=_needed(model, "num_experts_per_tok"),
        shared=_mlp(model, traits, names.shared, shared_width) if names.shared and shared_width else None,
        float32_weights=names.float32_weights,
    )


def _norm(traits: ArchitectureTraits, name: str | None, size: int) -> Norm | None:
    return Norm(name, size, **traits.norm.model_dump()) if name else None


def _final_norms(model: ModelProfile, traits: ArchitectureTraits) -> tuple[Norm, ...]:
    norm = _norm(traits, traits.norms.final, model.hidden_size)
    return () if norm is None else (norm, norm) if model.is_encoder_decoder else (norm,)


def _embeddings(model: ModelProfile, traits: ArchitectureTraits, width: int) -> tuple[Embedding, ...]:
    names = traits.embedding
    tokens = Embedding(names.tokens, model.vocab_size, width)
    if names.positions is None:
        return (tokens,)
    rows = _needed(model, "max_position_embeddings") + names.extra_positions
    return (tokens, Embedding(names.positions, rows, model.hidden_size))


def _embedding_projections(model: ModelProfile, traits: ArchitectureTraits, width: int) -> tuple[Linear, ...]:
    if width == model.hidden_size or traits.embedding.projections is None:
        return ()
    name_in, name_out = traits.embedding.projections
    return Linear(name_in, width, model.hidden_size), Linear(name_out, model.hidden_size, width)


def _position_biases(model: ModelProfile, traits: ArchitectureTraits) -> tuple[Embedding, ...]:
    if traits.attention.relative_buckets is None:
        return ()
    table = Embedding("relative_attention_bias", traits.attention.relative_buckets, model.num_attention_heads)
    return (table, table) if model.is_encoder_decoder else (table,)


def _buffer_bytes(model: ModelProfile, traits: ArchitectureTraits) -> tuple[int, ...]:
    """Causal masks of a byte a pair of positions, or four bytes for each position and rotated element."""
    kind = traits.attention.buffers
    if kind is None:
        return ()
    positions = _needed(model, "max_position_embeddings")
    if kind == "positions_per_layer":
        return (positions * _rotary_dim(model, traits) * 4,) * model.num_hidden_layers
    return (positions * positions,) * (1 if kind == "mask" else model.num_hidden_layers)


def _needed(model: ModelProfile, field: str) -> int:
    value = getattr(model, field)
    if value is None:
        raise InputError(f"{model.hf_id}: {field} is missing, and model_type {model.model_type!r} needs it")
    return int(value)
