"""The parts of a transformer, with the module names that Transformers gives them.

An `Architecture` is what a model profile and the traits of its `model_type` (`architectures.toml`) amount to: every
weight matrix, norm and embedding with its shape. Parameter counts, adapter sizes, quantized bytes and the tape of a
training step are all read off this one description. `build_architecture.architecture` makes it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Literal

NormKind = Literal["rms_norm", "layer_norm"]

ScoreBias = Literal["alibi", "relative"]

DropoutPlace = Literal["embedding", "attention", "activation", "residual"]
"""What is dropped out in training: the embedding's output, attention weights, the inside of the MLP, and the outputs of
attention and MLP."""

NamedToTheEnd = Literal["attention_input", "attention_output"]
"""What the code of a layer names until it returns, though nothing reads it any more."""

Scaled = Literal["embedding", "residual", "logits"]
"""What a class multiplies by a number of its own: the embedding's output, the outputs of attention and MLP, the logits.
"""

EagerScores = Literal["input", "float32_softmax", "float32"]
"""Precision of eager attention: the input's dtype, softmax in float32 and cast back, or scores in float32 as well."""

AttentionCode = Literal["eager", "sdpa", "flash_attention_2"]
"""Values of `attn_implementation` that a model class accepts."""


def _digest(part: "Block | Architecture") -> int:
    """The hash of a deep part, made once: every cached estimate starts with it."""
    return hash(tuple(getattr(part, item.name) for item in fields(part) if item.init))


@dataclass(frozen=True, slots=True)
class Linear:
    """A weight matrix of shape (out_features, in_features), and its bias.

    `name` is the last part of the module's path, the word that PEFT's `target_modules` matches. A matrix that is not
    `quantizable` is left alone by bitsandbytes, because Transformers wants it in more bits.
    """

    name: str
    in_features: int
    out_features: int
    bias: bool = False
    quantizable: bool = True

    @property
    def num_weights(self) -> int:
        """Elements of the matrix, without the bias."""
        return self.in_features * self.out_features

    @property
    def num_parameters(self) -> int:
        """Elements of the matrix and the bias."""
        return self.num_weights + (self.out_features if self.bias else 0)


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalization over the last `size` elements.

    `upcast` is true where the module computes in float32 and casts back, as Llama's does: then autograd keeps a float32
    copy of a 16-bit input. Torch's own LayerNorm keeps the input itself and two numbers a row. With `float32_scale` the
    product with the weight is in float32 as well, as Gemma's is, so the normalized values are kept in float32. With
    `scales_input` only the variance is of the float32 copy, so a 16-bit input is kept beside it, as T5's is.
    With `adds_one` the factor is one more than the weight, in float32.
    """

    name: str
    size: int
    kind: NormKind
    weight: bool = True
    bias: bool = False
    upcast: bool = False
    float32_scale: bool = False
    scales_input: bool = False
    adds_one: bool = False

    @property
    def num_parameters(self) -> int:
        """Elements of the scale and the shift."""
        return self.size * (self.weight + self.bias)


@dataclass(frozen=True, slots=True)
class Attention:
    """Self- or cross-attention: its projections and the geometry of its heads.

    `inputs` are q, k, v in this order, or one fused projection. With multi-head latent attention (`kv_lora_rank`, the
    width of the compressed keys and values) they are the query's one or two projections, the down-projection to latent
    plus rotary key, and the up-projection to keys and values. `head_dim` is that of queries and keys, `value_head_dim`
    that of values. `rotary_dim` is 0 without rotary positions. `window` is the number of keys a query sees, None for
    all. `score_bias` is a tensor of (heads, seq_len, seq_len) that is added to the scores. With `broadcasts_kv` the one
    head of keys and values is left to broadcasting, which torch's fused kernels refuse. Where it `rotates_apart`, the
    rotated part of each head is joined to the rest by a copy. With `scales_query` the query is multiplied before the
    scores are.
    """

    name: str
    inputs: tuple[Linear, ...]
    output: Linear
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_head_dim: int
    rotary_dim: int = 0
    window: int | None = None
    softcap: float | None = None
    norms: tuple[Norm, ...] = ()
    score_bias: ScoreBias | None = None
    eager_scores: EagerScores = "float32_softmax"
    kv_lora_rank: int | None = None
    broadcasts_kv: bool = False
    rotates_apart: bool = False
    scales_query: bool = False
    extra_parameters: int = 0
    cross: bool = False

    @property
    def linears(self) -> tuple[Linear, ...]:
        """All projections, in the order of the forward pass."""
        return (*self.inputs, self.output)

    @property
    def num_parameters(self) -> int:
        """Elements of projections and of attention sinks; norms are counted apart."""
        return sum(linear.num_parameters for linear in self.linears) + self.extra_parameters


@dataclass(frozen=True, slots=True)
class Mlp:
    """A feed-forward part. `inputs` is (gate, up), one fused gate_up, or one plain projection.

    One that is `inline` is part of the layer's own code. `activation` is the Hub's name; types whose config has none
    bring their own (`architectures.toml`).
    """

    name: str
    inputs: tuple[Linear, ...]
    output: Linear
    gated: bool
    activation: str
    inline: bool = False

    @property
    def linears(self) -> tuple[Linear, ...]:
        """All projections, in the order of the forward pass."""
        return (*self.inputs, self.output)

    @property
    def intermediate_size(self) -> int:
        """Width of the activation between the projections."""
        return self.output.in_features

    @property
    def num_parameters(self) -> int:
        """Elements of the projections."""
        return sum(linear.num_parameters for linear in self.linears)


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: a router and `num_experts` copies of `expert`, `num_experts_per_tok` of them a token.

    Transformers 5 keeps the experts of a layer in two three-dimensional parameters that are no Linear modules: neither
    bitsandbytes nor `target_modules` sees them. With `float32_weights` what an expert makes is weighed in float32.
    """

    name: str
    router: Linear
    expert: Mlp
    num_experts: int
    num_experts_per_tok: int
    shared: Mlp | None = None
    float32_weights: bool = False

    @property
    def num_parameters(self) -> int:
        """Elements of all experts, the shared one included; the router is counted with them."""
        shared = self.shared.num_parameters if self.shared else 0
        return self.router.num_parameters + self.num_experts * self.expert.num_parameters + shared


@dataclass(frozen=True, slots=True)
class Block:
    """One kind of transformer layer and how often the model has it.

    The four norms stand before and after attention and MLP; None where the model has none there. Those after normalize
    the output of attention or MLP, or with `norms_after_residual` the sum of that output and the residual stream. In a
    `parallel` block attention and MLP read the same residual stream and their outputs are added together; without a
    norm of its own the MLP reads what attention reads. `dropout` are the places where the layer drops out in training.
    What is `named_to_the_end` lives until the layer returns. If it `scales_residual`, what comes out of attention and
    MLP is multiplied by a number before it is added.
    """

    name: str
    count: int
    attention: Attention
    mlp: Mlp | Experts
    norm_before_attention: Norm | None = None
    norm_after_attention: Norm | None = None
    norm_before_mlp: Norm | None = None
    norm_after_mlp: Norm | None = None
    parallel: bool = False
    norms_after_residual: bool = False
    cross_attention: Attention | None = None
    norm_before_cross_attention: Norm | None = None
    dropout: tuple[DropoutPlace, ...] = ()
    named_to_the_end: tuple[NamedToTheEnd, ...] = ()
    scales_residual: bool = False
    digest: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", _digest(self))

    def __hash__(self) -> int:
        return self.digest

    @property
    def norms(self) -> tuple[Norm, ...]:
        """The norms of one layer, those inside attention included."""
        own = (
            self.norm_before_attention,
            self.norm_after_attention,
            self.norm_before_cross_attention,
            self.norm_before_mlp,
            self.norm_after_mlp,
        )
        inner = self.attention.norms + (self.cross_attention.norms if self.cross_attention else ())
        return tuple(norm for norm in own if norm) + inner

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The Linear modules of one layer: what can be quantized and adapted. Fused experts are none."""
        cross = self.cross_attention.linears if self.cross_attention else ()
        if isinstance(self.mlp, Mlp):
            return self.attention.linears + cross + self.mlp.linears
        return self.attention.linears + cross + (self.mlp.shared.linears if self.mlp.shared else ())


@dataclass(frozen=True, slots=True)
class Embedding:
    """A lookup table of shape (rows, columns)."""

    name: str
    rows: int
    columns: int

    @property
    def num_parameters(self) -> int:
        """Elements of the table."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Architecture:
    """All parts of one model.

    The first embedding is that of tokens, a second one that of learned positions. `head` is the output projection; if
    `tied` it shares the first embedding's weights. `embedding_projections` stand between embedding and residual
    stream where the widths differ, in and out. `position_biases` are the tables of learned attention biases by
    distance. `logit_softcap` squashes the logits with a tanh; unless it `upcasts_logits`, the class takes the cross
    entropy of them as they are. `scales_embedding` and `scales_logits` say what else is multiplied by a number.
    `linear_class` is the class of the blocks' projections: bitsandbytes quantizes `Linear` and `Conv1D`, not their
    subclasses. `float32_modules` stay in float32 when the model is loaded in float16. `other_parameters` belong to
    parts that text does not pass (a vision tower). `buffer_bytes` are the sizes of large tensors that are no weights,
    such as a causal mask of all positions.
    """

    embeddings: tuple[Embedding, ...]
    blocks: tuple[Block, ...]
    final_norms: tuple[Norm, ...]
    head: Linear
    tied: bool
    embedding_projections: tuple[Linear, ...] = ()
    embedding_norm: Norm | None = None
    position_biases: tuple[Embedding, ...] = ()
    logit_softcap: float | None = None
    upcasts_logits: bool = True
    scales_embedding: bool = False
    scales_logits: bool = False
    attention_codes: tuple[AttentionCode, ...] = ("eager", "sdpa", "flash_attention_2")
    linear_class: str = "Linear"
    float32_modules: tuple[str, ...] = ()
    other_parameters: int = 0
    buffer_bytes: tuple[int, ...] = ()
    digest: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", _digest(self))

    def __hash__(self) -> int:
        return self.digest

    @property
    def quantizable(self) -> bool:
        """Whether bitsandbytes packs the projections of the blocks."""
        return self.linear_class in ("Linear", "Conv1D")

    @property
    def num_layers(self) -> int:
        """Transformer layers of all kinds."""
        return sum(block.count for block in self.blocks)

    def linears(self) -> Iterator[tuple[Linear, int]]:
        """Every Linear module of the blocks with how often it occurs."""
        for block in self.blocks:
            for linear in block.linears:
                yield linear, block.count
