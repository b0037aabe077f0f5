"""The run file that makes the trainer take a given step: the way back from `planner.step.resolve`."""

import json
from dataclasses import replace
from typing import Any

from planner.config.run_config import (
    PAIRED,
    REFERRING,
    Dtype,
    LoraKnobs,
    MixedPrecision,
    PeftKnobs,
    PreferenceKnobs,
    RunConfig,
)
from planner.step.step_spec import Sharding, StepSpec
from profiles.errors import UnsupportedError

TRACED = ("ddp", "fsdp")
"""Engines that a trace follows."""

AUTOCAST: dict[str | None, MixedPrecision] = {None: "no", "bfloat16": "bf16"}


def run_config(step: StepSpec, model: str = "traced") -> RunConfig:
    """A run on the CPU whose step is `step`, as far as a run file of this trainer says it.

    What follows from another trainer (k-bit upcasts, its loss path) is not in it. float16 becomes bfloat16, which takes
    the same bytes and which a CPU can train in.
    """
    step = in_bfloat16(step)
    accumulation = 2 if step.gradients_persist else 1
    return RunConfig(
        model=model,
        gpu=None,
        objective=step.objective,
        preference=_preference(step),
        quantization=step.quantization,
        double_quant=step.double_quant,
        dtype=step.weight_dtype,
        mixed_precision=AUTOCAST[step.autocast],
        max_length=step.seq_len,
        max_target_length=step.target_len,
        # Rows of one length need no mask: as if they were packed to it.
        packing=False,
        per_device_train_batch_size=_examples(step, step.micro_batch),
        per_device_eval_batch_size=_examples(step, step.eval_batch or step.micro_batch),
        gradient_accumulation_steps=accumulation,
        gradient_checkpointing=step.checkpointing,
        checkpoint_every_n_layers=step.checkpoint_every,
        checkpoint_offload=step.checkpoint_offload,
        attn_implementation="eager" if step.attention == "eager" else "sdpa",
        loss="fused" if step.loss == "fused" else "full",
        optim=step.optimizer,
        max_steps=2,
        **_adapter(step),
        **_cards(step.sharding),
    )


def in_bfloat16(step: StepSpec) -> StepSpec:
    """`step` with the other 16-bit format where it had float16."""
    dtype: dict[Dtype, Dtype] = {"float16": "bfloat16"}
    adapter = step.adapter and replace(step.adapter, dtype=dtype.get(step.adapter.dtype, step.adapter.dtype))
    return replace(
        step,
        weight_dtype=dtype.get(step.weight_dtype, step.weight_dtype),
        autocast=dtype.get(step.autocast, step.autocast) if step.autocast else None,
        adapter=adapter,
    )


def asks_before(config: RunConfig) -> bool:
    """Whether a reference answers before training."""
    return config.preference is not None and config.preference.precompute_ref_log_probs


def asks_in_step(config: RunConfig) -> RunConfig:
    """`config` with a reference that answers in the step: to make a trainer of it asks nothing yet."""
    if config.preference is None:
        return config
    preference = config.preference.model_copy(update={"precompute_ref_log_probs": False})
    return config.model_copy(update={"preference": preference})


def _cards(sharding: Sharding | None) -> dict[str, Any]:
    """The cards of the run and how they share it. Raises UnsupportedError for what no trace follows."""
    if sharding is None:
        return {}
    if sharding.engine not in TRACED:
        raise UnsupportedError(
            f"steps that cards share by {sharding.engine} are not traced; by {' and '.join(TRACED)} they are",
            hint="leave --exact away: the closed form answers",
        )
    if sharding.offload != "none" or sharding.tensor_parallel_size * sharding.context_parallel_size > 1:
        raise UnsupportedError(
            "a trace follows what is on the card: no weights in host memory, no split products or rows",
            hint="leave --exact away: the closed form answers",
        )
    parallel = {"strategy": sharding.engine, "reshard_after_forward": sharding.reshard_after_forward}
    return {"num_gpus": sharding.num_gpus, "num_nodes": sharding.num_nodes, "parallel": parallel}


def _preference(step: StepSpec) -> PreferenceKnobs | None:
    if step.objective == "sft":
        return None
    return PreferenceKnobs(precompute_ref_log_probs=step.objective in REFERRING and step.reference == "none")


def _examples(step: StepSpec, rows: int) -> int:
    """Examples of a batch of `rows` rows; a pair has two."""
    return max(1, rows // 2) if step.objective in PAIRED else rows


def _adapter(step: StepSpec) -> dict[str, Any]:
    adapter = step.adapter
    if adapter is None:
        return {"method": "full"}
    if adapter.options is not None:
        options = {name: json.loads(value) for name, value in adapter.options}
        return {"method": "peft", "peft": PeftKnobs(type=adapter.peft_type, **options)}
    lora = LoraKnobs(
        r=adapter.r, lora_dropout=adapter.dropout, target_modules=adapter.targets, use_dora=adapter.use_dora
    )
    return {"method": "qlora" if step.quantization else "lora", "lora": lora}
