"""From a run file to the step that a trainer makes of it on a card."""

from dataclasses import replace
from functools import lru_cache

from planner.config.run_config import AUTOCAST, PAIRED, REFERRING, LoraKnobs, Objective, RunConfig
from planner.step.adapter_cost import adapter_in_options
from planner.step.network import network
from planner.step.step_spec import Adapter, AttentionKernel, Reference, Sharding, StepLoss, StepSpec
from profiles.architecture import Architecture
from profiles.errors import ConfigError
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile
from profiles.trainer import TrainerProfile, all_trainers, traits_of

LARGEST_FUSED_HEAD = 256
"""Widest head of torch's fused kernels with a backward pass (aten `sdp_utils.cpp`)."""


def resolve_step(
    config: RunConfig, model: ModelProfile, gpu: GpuProfile | None, trainer: str | TrainerProfile = "fitune"
) -> StepSpec:
    """The step that `trainer`, by name or by its traits, runs for `config` on `gpu` (None: a CPU).

    Raises ConfigError for target modules that the model does not have and for an unknown trainer.
    """
    traits = traits_of(trainer)
    _check_objective(config, model, traits)
    return step_of_network(config, network(model, config.objective), model.is_encoder_decoder, gpu, traits)


def step_of_network(
    config: RunConfig, arch: Architecture, is_encoder_decoder: bool, gpu: GpuProfile | None, traits: TrainerProfile
) -> StepSpec:
    """The step of `config` on a network of which only the attention of its layers and its Linear names matter here."""
    masked = _needs_mask(config, arch)
    autocast = AUTOCAST[config.mixed_precision]
    kernel, expand_kv = attention_kernel(config, arch, gpu, traits, masked)
    rows, seq_len = _batch_shape(config, traits)
    step = StepSpec(
        micro_batch=rows,
        seq_len=seq_len,
        weight_dtype=config.dtype,
        adapter=_adapter(config, arch, traits),
        quantization=config.quantization,
        double_quant=config.double_quant and config.quantization in ("nf4", "fp4"),
        kbit_upcast=traits.kbit_upcast and config.quantization is not None,
        float32_norms=traits.float32_norms,
        autocast=autocast,
        attention=kernel,
        expand_kv=expand_kv,
        masked=masked,
        loss=_loss(config, traits),
        checkpointing=config.gradient_checkpointing,
        checkpoint_every=config.checkpoint_every_n_layers,
        checkpoint_offload=config.checkpoint_offload and gpu is not None,
        optimizer=config.optim,
        gradients_persist=config.gradient_accumulation_steps > 1,
        eval_batch=_eval_rows(config, traits) if config.data and config.data.eval_fraction else None,
        objective=config.objective,
        reference=_reference(config),
        target_len=(config.max_target_length or config.max_length) if is_encoder_decoder else None,
        sharding=_sharding(config),
        device="cuda" if gpu else "cpu",
    )
    return _as_held(step)


def _as_held(step: StepSpec) -> StepSpec:
    """`step` with its weights as the engine holds them.

    Under mixed precision FSDP2 makes what learns float32 (accelerate 1.15 fsdp2_prepare_model). DeepSpeed casts the
    whole model to the dtype of mixed precision and runs without autocast (`runtime/engine.py`
    _configure_distributed_model).
    """
    if step.sharding is None or step.autocast is None:
        return step
    if step.sharding.engine == "fsdp" and step.adapter is None:
        return replace(step, weight_dtype="float32")
    if step.sharding.is_deepspeed:
        adapter = step.adapter and replace(step.adapter, dtype=step.autocast)
        return replace(step, weight_dtype=step.autocast, adapter=adapter, autocast=None)
    return step


def _sharding(config: RunConfig) -> Sharding | None:
    knobs = config.parallel
    if knobs is None:
        return None
    return Sharding(
        engine=knobs.strategy,
        num_gpus=config.num_gpus,
        num_nodes=config.num_nodes,
        offload=knobs.offload,
        reshard_after_forward=knobs.reshard_after_forward,
        tensor_parallel_size=knobs.tensor_parallel_size,
        context_parallel_size=knobs.context_parallel_size,
    )


def _check_objective(config: RunConfig, model: ModelProfile, traits: TrainerProfile) -> None:
    if model.is_encoder_decoder and traits.loss == "config":
        check_encoder_decoder(config, model.hf_id)
    if config.objective != "sft" and not traits.preferences:
        raise ConfigError(
            f"objective is {config.objective}, but what a step of {traits.name} takes is only known for sft",
            hint=f"one of: {', '.join(name for name, known in all_trainers().items() if known.preferences)}",
        )


def check_encoder_decoder(config: RunConfig, name: str) -> None:
    """Refuse what the trainer has for decoders only, in planning as at launch. Raises ConfigError."""
    if config.objective != "sft":
        raise ConfigError(
            f"objective is {config.objective}, but {name} has an encoder, which TRL trains no preferences of",
            hint="use sft, or a model without an encoder",
        )
    if config.loss == "fused":
        raise ConfigError(f"loss is fused, but {name} has an encoder, for which there is only full", hint="use full")
    if config.joins_rows:
        knob = "packing" if config.packing else "padding_free"
        raise ConfigError(f"{knob} joins rows of one kind, but {name} has an encoder", hint="set it to false")


def _rows(config: RunConfig, examples: int) -> int:
    """Rows that pass the model at once for so many examples."""
    return 2 * examples if config.objective in PAIRED else examples


def _batch_shape(config: RunConfig, traits: TrainerProfile) -> tuple[int, int]:
    """Rows of a batch and tokens of a row, as attention sees them.

    Rows that are joined are one long row, with a mask over all of it, but for flash_attention_2, which is told where
    each document ends and needs what separate rows need, and for trainers that only join within a row.
    """
    rows = _rows(config, config.per_device_train_batch_size)
    return (1, rows * config.max_length) if _joins_batch(config, traits) else (rows, config.max_length)


def _eval_rows(config: RunConfig, traits: TrainerProfile) -> int:
    """Rows of an evaluation batch, as long as those of training; joined ones are one, if not a shorter one."""
    return 1 if _joins_batch(config, traits) else _rows(config, config.per_device_eval_batch_size)


def _joins_batch(config: RunConfig, traits: TrainerProfile) -> bool:
    """Whether the rows of a batch are one row that a mask divides."""
    return traits.joins_batch and config.joins_rows and config.attn_implementation != "flash_attention_2"


def _loss(config: RunConfig, traits: TrainerProfile) -> StepLoss:
    own: dict[Objective, StepLoss] = {"orpo": "odds_ratio", "reward": "score"}
    if config.objective in own:
        return own[config.objective]
    if traits.loss != "config":
        return traits.loss
    return traits.fused if config.loss == "fused" else "full"


def _reference(config: RunConfig) -> Reference:
    """Where the reference answers: TRL copies a model that learns as a whole, and switches an adapter off."""
    if config.objective not in REFERRING or config.asks_reference_before:
        return "none"
    return "copy" if config.method == "full" else "adapter_off"


def attention_kernel(
    config: RunConfig, arch: Architecture, gpu: GpuProfile | None, traits: TrainerProfile, masked: bool
) -> tuple[AttentionKernel, bool]:
    """The kernel that `attn_implementation` ends in, and whether keys and values are repeated before it.

    Source: torch `sdp_utils.cpp` (flash: 16 bit, no mask, compute capability >= 8.0; memory-efficient: not for bfloat16
    below 8.0; on a CPU no dropout), transformers 5.23 `use_gqa_in_sdpa` (grouped heads are passed on only without a
    mask).
    """
    if config.attn_implementation == "eager":
        return "eager", False
    if config.attn_implementation == "flash_attention_2":
        return "flash", False
    if gpu is None:
        # The fused kernel of a CPU has no dropout.
        return ("math", False) if any("attention" in block.dropout for block in arch.blocks) else ("flash", masked)
    dtype = AUTOCAST[config.mixed_precision] or config.dtype
    attentions = [block.attention for block in arch.blocks]
    if any(attention.head_dim > LARGEST_FUSED_HEAD or attention.broadcasts_kv for attention in attentions):
        return "math", False
    flash_refuses = masked or any(a.score_bias or a.value_head_dim != a.head_dim for a in attentions)
    if gpu.supports_flash_attention and dtype != "float32" and not flash_refuses:
        return "flash", False
    grouped = any(attention.num_kv_heads < attention.num_heads for attention in attentions)
    if not gpu.supports_bf16 and (dtype == "bfloat16" or (grouped and not masked and not traits.repeats_kv)):
        return "math", False
    return "efficient", True


def _needs_mask(config: RunConfig, arch: Architecture) -> bool:
    """Whether the kernel gets a mask.

    Rows of different length are padded, a window is shorter than the row, or the documents of a row are kept apart
    (transformers 5.23 `masking_utils.find_packed_sequence_indices`, which looks where positions begin anew).
    """
    if config.attn_implementation == "flash_attention_2":
        return False
    slides = any(block.attention.window and block.attention.window < config.max_length for block in arch.blocks)
    return slides or config.packing or _rows(config, config.per_device_train_batch_size) > 1


def _adapter(config: RunConfig, arch: Architecture, traits: TrainerProfile) -> Adapter | None:
    dtype = traits.quantized_adapter_dtype if config.quantization else traits.adapter_dtype
    if config.peft is not None:
        return adapter_in_options(config.peft.type, config.peft.options, dtype, linear_names(arch))
    if config.lora is None:
        return None
    options = config.lora.model_dump() | {"target_modules": target_modules(config.lora, arch)}
    adapter = adapter_in_options("LORA", options, dtype, linear_names(arch))
    # TRL's trainers of preferences switch all dropout off.
    return adapter if config.objective == "sft" else replace(adapter, dropout=0.0)


def target_modules(lora: LoraKnobs, arch: Architecture) -> tuple[str, ...]:
    """Names of the modules that get an adapter, sorted. Raises ConfigError for one that the model does not have."""
    known = linear_names(arch)
    if lora.target_modules == "all-linear":
        return known
    for name in lora.target_modules:
        if name not in known:
            raise ConfigError(
                f"target_modules names {name}, which no Linear module of this model is called",
                hint=f"it has {', '.join(known)}",
            )
    return tuple(sorted(set(lora.target_modules)))


@lru_cache(maxsize=256)
def linear_names(arch: Architecture) -> tuple[str, ...]:
    """The names of all Linear modules that `all-linear` stands for, sorted."""
    return tuple(sorted({linear.name for linear, _ in arch.linears()}))
