"""The same run in plain TRL and plain Transformers: as their documentation shows it, with none of this trainer's parts.

What the run file says of batch, checkpoints, optimizer, precision and adapter is told to them; all else is their own
default. `checkpoint_every_n_layers` above 1 and `checkpoint_offload` are this trainer's, and refused.
"""

from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from calibration.measuring.measurement import Contender
from calibration.measuring.random_model import with_adapter
from calibration.trace.fake_batches import examples, tokenizer
from planner.config.run_config import RunConfig
from profiles.errors import UnsupportedError
from trainer.objectives.arguments import CHECKPOINTING
from trainer.objectives.objective import make_trainer

NUM_ROWS = 64


def contending_trainer(contender: Contender, config: RunConfig, base: PreTrainedModel) -> Trainer:
    """A trainer of `contender` that is ready to train `base`, with the adapter of the run.

    Raises UnsupportedError for what a contender cannot do.
    """
    if contender == "fitune":
        return make_trainer(config, with_adapter(base, config), tokenizer(), examples(config, base.config))
    if config.objective != "sft" or config.joins_rows or config.method == "peft":
        raise UnsupportedError(f"only supervised runs of LoRA or all weights are compared with plain {contender}")
    if config.checkpoint_offload or config.checkpoint_every_n_layers > 1:
        raise UnsupportedError(f"plain {contender} is not told to offload checkpoints or to leave some out")
    make = plain_trl if contender == "trl" else plain_transformers
    trainer = make(config, base, tokenizer())
    trainer.remove_callback(PrinterCallback)
    return trainer


def plain_trl(config: RunConfig, base: PreTrainedModel, words: PreTrainedTokenizerBase) -> Trainer:
    """TRL's SFTTrainer with a LoraConfig."""
    arguments = SFTConfig(**_arguments(config), max_length=config.max_length)
    return SFTTrainer(base, arguments, train_dataset=_rows(config), processing_class=words, peft_config=_lora(config))


def plain_transformers(config: RunConfig, base: PreTrainedModel, words: PreTrainedTokenizerBase) -> Trainer:
    """Transformers' Trainer on PEFT's model."""
    lora = _lora(config)
    model = get_peft_model(base, lora) if lora else base
    if lora and config.gradient_checkpointing:
        model.enable_input_require_grads()
    collator = DataCollatorForLanguageModeling(words, mlm=False)
    return Trainer(model, TrainingArguments(**_arguments(config)), data_collator=collator, train_dataset=_rows(config))


def _arguments(config: RunConfig) -> dict[str, Any]:
    return {
        "output_dir": config.output_dir,
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        CHECKPOINTING: config.gradient_checkpointing,
        f"{CHECKPOINTING}_kwargs": {"use_reentrant": False},
        "optim": config.optim,
        "learning_rate": config.learning_rate,
        "max_steps": config.max_steps or 1,
        "bf16": config.mixed_precision == "bf16",
        "fp16": config.mixed_precision == "fp16",
        "use_cpu": config.gpu is None,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        # The clock counts them.
        "include_num_input_tokens_seen": "all",
        "seed": config.seed,
    }


def _lora(config: RunConfig) -> LoraConfig | None:
    if config.lora is None:
        return None
    knobs = config.lora
    targets = knobs.target_modules if isinstance(knobs.target_modules, str) else list(knobs.target_modules)
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=knobs.r,
        lora_alpha=knobs.lora_alpha,
        lora_dropout=knobs.lora_dropout,
        target_modules=targets,
    )


def _rows(config: RunConfig) -> Dataset:
    ids = torch.ones(config.max_length, dtype=torch.long).tolist()
    return Dataset.from_list([{"input_ids": ids, "attention_mask": ids}] * NUM_ROWS)
