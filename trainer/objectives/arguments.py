"""Settings that all objectives share: every one that matters is stated, none is left to a library's default."""

import difflib
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from planner.config.run_config import RunConfig
from profiles.errors import ConfigError
from trainer.data.examples import Examples
from trainer.processes.agreement import TIMEOUT
from trainer.processes.layout import deepspeed_config

OPTIMIZERS = tuple(name.value for name in OptimizerNames)

# Transformers renamed the two settings after 5.17; the old names are deprecated in 5.23.
_FIELDS = {field.name for field in fields(TrainingArguments)}
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in _FIELDS else "gradient_checkpointing"


def common_settings(config: RunConfig, examples: Examples) -> dict[str, Any]:
    """What any trainer of Transformers and TRL is told. Raises ConfigError for an optimizer that there is not."""
    if config.optim not in OPTIMIZERS:
        near = difflib.get_close_matches(config.optim, OPTIMIZERS, n=1)
        raise ConfigError(
            f"optim is {config.optim}, but Transformers has no such optimizer",
            hint=f"did you mean {near[0]}?" if near else f"it has {', '.join(OPTIMIZERS)}",
        )
    evaluates = examples.evaluation is not None and config.eval_steps is not None
    return {
        **_batch_settings(config),
        **_optimizer_settings(config),
        **_output_settings(config),
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": config.eval_steps,
    }


def _batch_settings(config: RunConfig) -> dict[str, Any]:
    """What one micro-batch is, and how it passes through the model."""
    return {
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "per_device_eval_batch_size": config.per_device_eval_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "auto_find_batch_size": False,
        "prediction_loss_only": True,
        "bf16": config.mixed_precision == "bf16",
        "fp16": config.mixed_precision == "fp16",
        "bf16_full_eval": False,
        "fp16_full_eval": False,
        # Kernels that some cards do not have, or that take minutes to begin, are nobody's default.
        "tf32": None,
        "use_liger_kernel": False,
        "torch_compile": False,
        "use_cpu": config.gpu is None,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": config.gpu is not None,
        "ddp_find_unused_parameters": False,
        "ddp_timeout": int(TIMEOUT.total_seconds()),
        "deepspeed": deepspeed_config(config),
        "accelerator_config": _accelerator_config(config),
        CHECKPOINTING: config.gradient_checkpointing,
        f"{CHECKPOINTING}_kwargs": {
            "use_reentrant": False,
            "every_n_layers": config.checkpoint_every_n_layers,
            "offload": config.checkpoint_offload,
        },
    }


def _accelerator_config(config: RunConfig) -> dict[str, Any] | None:
    """FSDP reduces the gradients of each micro-batch; else it would keep those of all weights until the last one."""
    if config.parallel is None or config.parallel.strategy != "fsdp":
        return None
    return {"gradient_accumulation_kwargs": {"sync_each_batch": True}}


def _optimizer_settings(config: RunConfig) -> dict[str, Any]:
    """How the weights change, and for how long."""
    return {
        "optim": config.optim,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler_type,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "num_train_epochs": config.num_train_epochs,
        # Transformers' way to say that the epochs decide.
        "max_steps": config.max_steps or -1,
        "seed": config.seed,
        "data_seed": config.seed,
    }


def _output_settings(config: RunConfig) -> dict[str, Any]:
    """What is written, and how often."""
    return {
        "output_dir": config.output_dir,
        "logging_strategy": "steps",
        "logging_steps": config.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "all",
        "disable_tqdm": True,
        "report_to": list(config.report_to) or "none",
        # What trackers call the run.
        "run_name": Path(config.output_dir).name,
        "project": "fitune",
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        # Old checkpoints are deleted once the new one is sealed; Transformers would do it before.
        "save_total_limit": None,
        "save_only_model": False,
        "load_best_model_at_end": config.load_best_model_at_end,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "push_to_hub": False,
    }
