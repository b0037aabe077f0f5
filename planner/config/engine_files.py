"""How cards share a run in the words of the engines: accelerate's configuration file and DeepSpeed's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planner.config.run_config import ParallelKnobs, RunConfig
from profiles.errors import ConfigError

ACCELERATE_FILE = "accelerate.yaml"
DEEPSPEED_FILE = "deepspeed.json"

ADAM = {"betas": [0.9, 0.999], "eps": 1e-8}
"""Those of Transformers' TrainingArguments; DeepSpeed's own optimizer has to be told."""


def accelerate_config(config: RunConfig, folder: Path) -> dict[str, Any]:
    """The content of accelerate's configuration file for a run in `folder`."""
    knobs = config.parallel
    shared = {
        "compute_environment": "LOCAL_MACHINE",
        "use_cpu": config.gpu is None,
        "num_machines": config.num_nodes,
        "num_processes": config.world_size,
        "mixed_precision": config.mixed_precision,
    }
    if knobs is None:
        return {"distributed_type": "NO", **shared}
    if knobs.strategy == "fsdp":
        return {"distributed_type": "FSDP", **shared, "fsdp_config": fsdp_section(config, knobs)}
    if knobs.strategy == "ddp":
        return {"distributed_type": "MULTI_CPU" if config.gpu is None else "MULTI_GPU", **shared}
    # DeepSpeed's file says the precision; accelerate refuses to hear it twice.
    shared.pop("mixed_precision")
    section = {
        "deepspeed_config_file": str(folder / DEEPSPEED_FILE),
        "zero3_init_flag": knobs.strategy == "zero3",
        "deepspeed_multinode_launcher": "standard",
    }
    return {"distributed_type": "DEEPSPEED", **shared, "deepspeed_config": section}


def deepspeed_config(config: RunConfig) -> dict[str, Any] | None:
    """The content of DeepSpeed's configuration file; None for other engines."""
    knobs = config.parallel
    if knobs is None or not knobs.strategy.startswith("zero"):
        return None
    content: dict[str, Any] = {
        "train_batch_size": config.effective_batch_size,
        "train_micro_batch_size_per_gpu": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": config.mixed_precision == "bf16"},
        "fp16": {"enabled": config.mixed_precision == "fp16"},
        "zero_optimization": _zero_section(knobs),
        "zero_allow_untested_optimizer": config.optim == "sgd",
    }
    if knobs.offload != "none":
        # In host memory DeepSpeed steps with an Adam of its own.
        rates = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        content["optimizer"] = {"type": "AdamW", "params": {**rates, **ADAM}}
    return content


def layout_of_deepspeed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The section `parallel` of a run with this content in DeepSpeed's file.

    Raises ConfigError for what is not described.
    """
    section = content.get("zero_optimization") or {}
    stage = int(section.get("stage", 0))
    held = {name: (section.get(f"offload_{name}") or {}).get("device", "none") for name in ("optimizer", "param")}
    if strange := [device for device in held.values() if device not in ("none", "cpu")]:
        raise ConfigError(f"an offload to {strange[0]}, which is not described", hint="offload to cpu, or nothing")
    offload = "parameters" if held["param"] == "cpu" else "optimizer" if held["optimizer"] == "cpu" else "none"
    return {"strategy": f"zero{stage}" if stage else "ddp", "offload": offload}


def fsdp_section(config: RunConfig, knobs: ParallelKnobs) -> dict[str, Any]:
    """Accelerate's section on FSDP2."""
    return {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": knobs.reshard_after_forward,
        "fsdp_offload_params": knobs.offload == "parameters",
        # Each process writes its own share, and any number of processes can read them.
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        # One process of a machine reads the weights. What bitsandbytes packs cannot be sent to the others.
        "fsdp_cpu_ram_efficient_loading": config.quantization is None,
        # The run file's gradient_checkpointing, which Transformers does.
        "fsdp_activation_checkpointing": False,
    }


def _zero_section(knobs: ParallelKnobs) -> dict[str, Any]:
    stage = int(knobs.strategy.removeprefix("zero"))
    # Transformers puts the square of hidden_size and the like for `auto`; DeepSpeed's own buckets take gigabytes.
    section: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
    }
    if knobs.offload != "none":
        section["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if knobs.offload == "parameters":
        section["offload_param"] = {"device": "cpu", "pin_memory": True}
    if stage == 3:
        section["stage3_prefetch_bucket_size"] = "auto"
        section["stage3_param_persistence_threshold"] = "auto"
        section["stage3_gather_16bit_weights_on_model_save"] = True
    return section
