"""Settings of Transformers' `TrainingArguments`: a JSON file of them, and the part that TRL and LLaMA-Factory share.

They name no model, no adapter and no length of a row; for a file of only them those come from the command line.
"""

from typing import Any

from planner.config.run_config import Dtype, MixedPrecision, RunConfig
from planner.peers.keys import Keys
from planner.peers.reading import HELD_OUT, Reading, counted, data_knobs, optimizer, schedule
from profiles.errors import ConfigError
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile

CHECKPOINTS = {"every_n_layers", "offload", "use_reentrant", "preserve_rng_state", "determinism_check"}
"""Options of `gradient_checkpointing_kwargs` that are read or cost nothing."""

LOADED_AS: dict[MixedPrecision, Dtype] = {"bf16": "bfloat16", "fp16": "float32", "no": "float32"}
"""Dtype of the weights where the file cannot say it: float16 ones cannot be trained, so those are taken as float32."""


def read(keys: Keys, model: ModelProfile | None, gpu: GpuProfile | None) -> Reading:
    """A run of the plain Trainer on a model that is trained as a whole, unless told otherwise."""
    knobs = arguments(keys) | checkpointing(keys)
    dtype = LOADED_AS[knobs["mixed_precision"]]
    keys.remarks.append(
        "training arguments name neither the method nor the length of a row nor the dtype of the weights; this is "
        f"answered for full fine-tuning in {dtype}, and for rows of 2048 tokens, unless options say otherwise"
    )
    data = data_knobs(None, HELD_OUT if evaluates(keys) else 0.0)
    loss = "fused" if keys("use_liger_kernel") else "full"
    traits = {"loss": "config", "fused": "liger"}
    return Reading(knobs | {"method": "full", "dtype": dtype, "data": data, "loss": loss}, traits)


def write(config: RunConfig) -> dict[str, Any]:
    """The settings of `config`; what they cannot say is left out."""
    return write_arguments(config) | write_checkpointing(config) | {"use_liger_kernel": config.loss == "fused"}


def refusal(config: RunConfig) -> ConfigError | None:
    """Training arguments alone are no run."""
    return ConfigError("training arguments name no model and no data, so they are no run", hint="a script does")


def arguments(keys: Keys) -> dict[str, Any]:
    """The knobs of batch, optimizer and precision."""
    rows = int(keys("per_device_train_batch_size"))
    return {
        "per_device_train_batch_size": rows,
        # Without evaluation it has no effect, so that it breaks no rule either.
        "per_device_eval_batch_size": int(keys("per_device_eval_batch_size")) if evaluates(keys) else rows,
        "gradient_accumulation_steps": int(keys("gradient_accumulation_steps")),
        "mixed_precision": "bf16" if keys("bf16") else "fp16" if keys("fp16") else "no",
        "optim": optimizer(keys, "optim"),
        "learning_rate": keys("learning_rate"),
        "lr_scheduler_type": schedule(keys("lr_scheduler_type")),
        "warmup_steps": counted(keys("warmup_steps")) or 0,
        "weight_decay": keys("weight_decay"),
        "max_grad_norm": keys("max_grad_norm") or 1.0,
        "num_train_epochs": keys("num_train_epochs"),
        "max_steps": counted(keys("max_steps")),
        "seed": keys("seed"),
        "output_dir": keys("output_dir") or "trainer_output",
        "logging_steps": counted(keys("logging_steps")) or 1,
        "save_steps": counted(keys("save_steps")) or 1,
        "save_total_limit": counted(keys("save_total_limit")) or 1,
        "eval_steps": counted(keys("eval_steps")),
    }


def evaluates(keys: Keys) -> bool:
    """Whether there is an evaluation: Transformers does not look at data before it is asked to."""
    strategy = keys("eval_strategy")
    return bool(keys("do_eval")) or (bool(strategy) and str(getattr(strategy, "value", strategy)) != "no")


def checkpointing(keys: Keys) -> dict[str, Any]:
    """The knobs of gradient checkpointing, under its newer or older name."""
    options = keys("activation_checkpointing_kwargs") or {}
    # The default is under the older name.
    on = bool(keys("activation_checkpointing" if keys.given("activation_checkpointing") else "gradient_checkpointing"))
    if unknown := options.keys() - CHECKPOINTS:
        name = keys.given("activation_checkpointing_kwargs") or "activation_checkpointing_kwargs"
        keys.leave_out(name, f"options of checkpointing: {', '.join(sorted(unknown))}")
    return {
        "gradient_checkpointing": on,
        "checkpoint_every_n_layers": int(options.get("every_n_layers", 1)) if on else 1,
        "checkpoint_offload": bool(options.get("offload", False)) and on,
    }


def write_arguments(config: RunConfig) -> dict[str, Any]:
    """Batch, optimizer, precision and output of `config`, in names that releases from 4.5x to 5.23 know."""
    evaluates = config.data is not None and config.data.eval_fraction > 0
    settings = {
        "output_dir": config.output_dir,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": config.max_steps,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler_type,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "optim": config.optim,
        "bf16": config.mixed_precision == "bf16",
        "fp16": config.mixed_precision == "fp16",
        "seed": config.seed,
        "logging_steps": config.logging_steps,
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": config.save_total_limit,
        "report_to": ",".join(config.report_to) or "none",
    }
    if evaluates:
        settings["per_device_eval_batch_size"] = config.per_device_eval_batch_size
        settings |= {"eval_strategy": "steps" if config.eval_steps else "no", "do_eval": True}
        settings |= {"eval_steps": config.eval_steps} if config.eval_steps else {}
    if config.load_best_model_at_end:
        settings |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    return {key: value for key, value in settings.items() if value is not None}


def write_checkpointing(config: RunConfig) -> dict[str, Any]:
    """Gradient checkpointing under the name that all releases read."""
    if not config.gradient_checkpointing:
        return {"gradient_checkpointing": False}
    options: dict[str, Any] = {"use_reentrant": False}
    if config.checkpoint_every_n_layers > 1:
        options["every_n_layers"] = config.checkpoint_every_n_layers
    if config.checkpoint_offload:
        options["offload"] = True
    return {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": options}
