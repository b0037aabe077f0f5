"""Small models, and a step to begin from, for tests of the trace."""

from dataclasses import replace

from transformers import (
    CohereConfig,
    DeepseekV3Config,
    Gemma3TextConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    T5Config,
)

from planner.step.step_spec import Adapter, StepSpec

TOKENS = {"vocab_size": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA_TARGETS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")

LORA = StepSpec(
    micro_batch=2,
    seq_len=64,
    weight_dtype="bfloat16",
    adapter=Adapter(8, LLAMA_TARGETS, 0.0, "float32"),
    autocast="bfloat16",
    attention="efficient",
    expand_kv=True,
    masked=True,
    loss="fused",
)
FULL = replace(LORA, adapter=None, weight_dtype="float32")
QLORA = replace(LORA, quantization="nf4", double_quant=True)
DORA = Adapter(8, LLAMA_TARGETS, 0.0, "float32", use_dora=True)


def adapted(*targets: str) -> StepSpec:
    """LORA on other modules."""
    return replace(LORA, adapter=Adapter(8, targets, 0.0, "float32"))


def llama(num_layers: int = 5) -> LlamaConfig:
    """A small Llama."""
    return LlamaConfig(num_hidden_layers=num_layers, **SHAPE, **TOKENS)


MLA = {"kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_group": 2, "topk_group": 1}
BY_TURNS = ["sliding_attention", "full_attention"] * 4

ARCHITECTURES: dict[str, tuple[PreTrainedConfig, StepSpec]] = {
    "mixtral, a loss over all routers": (
        MixtralConfig(num_hidden_layers=5, num_local_experts=4, **SHAPE, **TOKENS),
        LORA,
    ),
    "deepseek v3, latent attention": (
        DeepseekV3Config(
            num_hidden_layers=6,
            first_k_dense_replace=1,
            **SHAPE | {"num_key_value_heads": 4},
            **MLA,
            **ROUTED,
            **TOKENS,
        ),
        adapted("q_b_proj", "o_proj"),
    ),
    "gemma 3, two kinds of layers by turns": (
        Gemma3TextConfig(layer_types=BY_TURNS, num_hidden_layers=8, head_dim=32, sliding_window=32, **SHAPE, **TOKENS),
        adapted("q_proj"),
    ),
    "t5, two stacks": (
        T5Config(d_model=128, d_kv=32, d_ff=256, num_layers=5, num_heads=4, decoder_start_token_id=0, **TOKENS),
        replace(adapted("q", "v"), target_len=32, loss="full"),
    ),
    "cohere, outside of the catalog": (CohereConfig(num_hidden_layers=5, **SHAPE, **TOKENS), LORA),
}
