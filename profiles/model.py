"""The shape of one model: what its `config.json` on the Hub says, and where the figures come from."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

LayerType = Literal["full_attention", "sliding_attention"]

Fraction = Annotated[float, Field(gt=0, le=1)]
Layers = Annotated[int, Field(gt=0, le=10_000)]
"""Some work is done layer by layer: a shape of a billion of them, from whoever's file, must not take that for ever."""


class ModelProfile(BaseModel):
    """A model's architecture in the words of its Hub config.

    Types of model that call a field otherwise (`n_embd`, `d_model`) are translated when they are read. A field that is
    None has no meaning for the model, or the value that its `model_type` always has (`architectures.toml`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    hf_id: str = Field(description="Name on the Hub, or the folder it was read from.")
    model_type: str = Field(description="Key of the architecture in architectures.toml.")
    aliases: tuple[str, ...] = Field((), description="Other names of the same shape: short names, chat variants.")

    hidden_size: PositiveInt = Field(description="Width of the residual stream.")
    intermediate_size: PositiveInt = Field(description="Width inside the feed-forward part.")
    num_hidden_layers: Layers = Field(description="Layers of the decoder; of the encoder if there are both.")
    num_decoder_layers: Layers | None = Field(None, description="Decoder layers of an encoder-decoder model.")
    num_attention_heads: PositiveInt = Field(description="Query heads.")
    num_key_value_heads: PositiveInt = Field(description="Key and value heads; 1 is multi-query attention.")
    head_dim: PositiveInt | None = Field(None, description="Width of a head; None: hidden_size / num_attention_heads.")
    vocab_size: PositiveInt = Field(description="Rows of the embedding.")
    max_position_embeddings: PositiveInt | None = Field(None, description="Longest sequence in tokens, if limited.")
    tie_word_embeddings: bool = Field(description="True: the head shares the weights of the embedding.")
    hidden_act: str | None = Field(None, description="Activation of the feed-forward part.")

    gated_mlp: bool | None = Field(None, description="T5: whether the activation is multiplied by a second projection.")
    attention_bias: bool | None = Field(None, description="Whether the attention projections have a bias.")
    use_qkv_bias: bool | None = Field(None, description="StableLM: whether the q, k and v projections have a bias.")
    mlp_bias: bool | None = Field(None, description="Whether the feed-forward projections have a bias.")
    parallel_attn: bool | None = Field(None, description="Falcon: attention and MLP side by side.")
    use_parallel_residual: bool | None = Field(None, description="GPT-NeoX, StableLM: attention and MLP side by side.")
    new_decoder_architecture: bool | None = Field(None, description="Falcon: the layout of the 40B model.")
    num_ln_in_parallel_attn: Literal[1, 2] | None = Field(None, description="Falcon: norms of a parallel layer.")
    do_layer_norm_before: bool | None = Field(None, description="OPT: whether norms come before attention and MLP.")
    word_embed_proj_dim: PositiveInt | None = Field(
        None, description="OPT: width of the embedding, if not hidden_size."
    )

    partial_rotary_factor: Fraction | None = Field(None, description="Part of a head that is rotated.")
    rotary_dim: PositiveInt | None = Field(None, description="GPT-J: elements of a head that are rotated.")
    no_rope_layer_interval: PositiveInt | None = Field(None, description="Each n-th layer has no rotary positions.")

    sliding_window: PositiveInt | None = Field(
        None, description="Tokens that a sliding layer sees; None: no such layer."
    )
    sliding_window_pattern: PositiveInt | None = Field(None, description="Each n-th layer sees all, the rest slide.")
    layer_types: tuple[LayerType, ...] | None = Field(None, description="Kind of each layer, where no pattern says it.")
    attn_logit_softcapping: float | None = Field(None, description="Bound of the attention scores before softmax.")
    final_logit_softcapping: float | None = Field(None, description="Bound of the logits.")

    num_experts: PositiveInt | None = Field(None, description="Routed experts of a layer; None: a dense model.")
    num_experts_per_tok: PositiveInt | None = Field(None, description="Routed experts that a token passes.")
    moe_intermediate_size: PositiveInt | None = Field(
        None, description="Width of one expert, if not intermediate_size."
    )
    n_shared_experts: PositiveInt | None = Field(None, description="Experts that every token passes, fused into one.")
    first_k_dense_replace: PositiveInt | None = Field(None, description="Layers at the start without experts.")

    q_lora_rank: PositiveInt | None = Field(None, description="Latent attention: width of compressed queries.")
    kv_lora_rank: PositiveInt | None = Field(None, description="Latent attention: width of compressed keys and values.")
    qk_nope_head_dim: PositiveInt | None = Field(None, description="Latent attention: part of a head without rotation.")
    qk_rope_head_dim: PositiveInt | None = Field(None, description="Latent attention: rotated part of a head.")
    v_head_dim: PositiveInt | None = Field(None, description="Latent attention: width of a value head.")

    torch_dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="Dtype of the weights shipped."
    )
    gated: bool | None = Field(None, description="True: the Hub asks to accept a license first. None: not known.")
    num_other_parameters: int = Field(0, ge=0, description="Parameters of parts that text does not pass (vision).")
    num_parameters_published: PositiveInt | None = Field(None, description="Exact count that somebody else published.")
    num_parameters_source: str | None = Field(None, description="Where that count stands.")

    sources: tuple[str, ...] = Field(min_length=1, description="Public places that state these fields.")
    unconfirmed: tuple[str, ...] = Field((), description="Fields for which no public place was found.")
    notes: str | None = Field(None, description="What a reader of the figures should know.")

    @model_validator(mode="after")
    def _check(self) -> "ModelProfile":
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}, not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        if self.head_dim is None and self.kv_lora_rank is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}, not a multiple of num_attention_heads {self.num_attention_heads}; "
                "head_dim is needed"
            )
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"layer_types has {len(self.layer_types)} entries for {self.num_hidden_layers} layers")
        return self

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt and a decoder writes the answer."""
        return self.num_decoder_layers is not None
