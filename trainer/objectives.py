"""Supervised fine-tuning with TRL: every setting that matters is stated, none is left to a library's default."""

import difflib
from dataclasses import fields
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer
from transformers.training_args import OptimizerNames
from trl import SFTConfig, SFTTrainer

from planner.run_config import RunConfig
from profiles.errors import ConfigError, DataError
from trainer.data import Examples
from trainer.hardware import cast_trainable_to_float32

OPTIMIZERS = tuple(name.value for name in OptimizerNames)

# Transformers renamed the two settings after 5.17; the old names are deprecated in 5.23.
_FIELDS = {field.name for field in fields(SFTConfig)}
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in _FIELDS else "gradient_checkpointing"


class FullLogitsTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with the loss of plain Transformers: all logits at once, upcast to float32, cross entropy."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, object]:
        """The loss of one micro-batch, as transformers.Trainer computes it from the model's own forward pass."""
        inputs = {**inputs, "use_cache": False}
        loss: torch.Tensor | tuple[torch.Tensor, object]
        loss = Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        return loss


def training_arguments(config: RunConfig, examples: Examples) -> SFTConfig:
    """TRL's settings of the run. Raises ConfigError for an optimizer that Transformers does not know."""
    if config.optim not in OPTIMIZERS:
        near = difflib.get_close_matches(config.optim, OPTIMIZERS, n=1)
        raise ConfigError(
            f"optim is {config.optim}, but Transformers has no such optimizer",
            hint=f"did you mean {near[0]}?" if near else f"it has {', '.join(OPTIMIZERS)}",
        )
    evaluates = examples.evaluation is not None and config.eval_steps is not None
    return SFTConfig(
        **_batch_settings(config),
        **_optimizer_settings(config),
        **_output_settings(config),
        completion_only_loss=examples.completion_only_loss,
        assistant_only_loss=examples.assistant_only_loss,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=config.eval_steps,
    )


def _batch_settings(config: RunConfig) -> dict[str, Any]:
    """What one micro-batch is, and how it passes through the model."""
    return {
        "max_length": config.max_length,
        "packing": config.packing,
        "packing_strategy": "bfd",
        "eval_packing": config.packing,
        "loss_type": "nll",
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "per_device_eval_batch_size": config.per_device_eval_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "auto_find_batch_size": False,
        "prediction_loss_only": True,
        "bf16": config.mixed_precision == "bf16",
        "fp16": config.mixed_precision == "fp16",
        "bf16_full_eval": False,
        "fp16_full_eval": False,
        "torch_compile": False,
        "use_cpu": config.gpu is None,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": config.gpu is not None,
        CHECKPOINTING: config.gradient_checkpointing,
        f"{CHECKPOINTING}_kwargs": {
            "use_reentrant": False,
            "every_n_layers": config.checkpoint_every_n_layers,
            "offload": config.checkpoint_offload,
        },
    }


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
        "report_to": "none",
        "save_strategy": "steps",
        "save_steps": config.save_steps,
        "save_total_limit": config.save_total_limit,
        "save_only_model": False,
        "load_best_model_at_end": False,
        "push_to_hub": False,
    }


def make_trainer(
    config: RunConfig,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
) -> SFTTrainer:
    """A trainer that is ready to train `model`, with the loss path and the dtypes of the run.

    Raises DataError if no row is left after rows without a token to learn are dropped.
    """
    trainer_class = SFTTrainer if config.loss == "fused" else FullLogitsTrainer
    trainer = trainer_class(
        model=model,
        args=training_arguments(config, examples),
        train_dataset=examples.train,
        eval_dataset=examples.evaluation,
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    if config.lora is not None:
        cast_trainable_to_float32(trainer.model)
    for name, dataset in (("train", trainer.train_dataset), ("evaluation", trainer.eval_dataset)):
        if dataset is not None and len(dataset) == 0:
            raise DataError(
                f"no {name} row has a token to learn within max_length {config.max_length}",
                hint="raise max_length, or shorten the prompts",
            )
    return trainer


def dropped_rows(examples: Examples, trainer: SFTTrainer) -> int:
    """Rows that TRL left out because max_length cuts off all that could be learned; 0 with packing, which splits."""
    if trainer.args.packing:
        return 0
    return len(examples.train) - len(trainer.train_dataset)


def rows_at_limit(trainer: SFTTrainer) -> int:
    """Rows that fill max_length and so may have lost their end."""
    if trainer.args.packing:
        return 0
    return sum(len(ids) == trainer.args.max_length for ids in trainer.train_dataset["input_ids"])
