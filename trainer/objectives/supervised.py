"""Supervised fine-tuning of decoders, by TRL's SFTTrainer."""

from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from planner.config.run_config import RunConfig
from trainer.data.examples import Examples
from trainer.data.isolation import check_isolation
from trainer.objectives.arguments import common_settings


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


def supervised_arguments(config: RunConfig, examples: Examples) -> SFTConfig:
    """TRL's settings of the run. Raises ConfigError for what Transformers does not know."""
    return SFTConfig(
        **common_settings(config, examples),
        max_length=config.max_length,
        packing=config.packing,
        packing_strategy="bfd",
        eval_packing=config.packing,
        loss_type="nll",
        completion_only_loss=examples.completion_only_loss,
        assistant_only_loss=examples.assistant_only_loss,
    )


def supervised_trainer(
    config: RunConfig, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, examples: Examples
) -> SFTTrainer:
    """A trainer with the loss path of the run.

    Raises ConfigError if rows are to be joined and the model does not keep them apart.
    """
    trainer_class = SFTTrainer if config.loss == "fused" else FullLogitsTrainer
    trainer = trainer_class(
        model=model,
        args=supervised_arguments(config, examples),
        train_dataset=examples.train,
        eval_dataset=examples.evaluation,
        processing_class=tokenizer,
    )
    if config.padding_free:
        # TRL refuses this where it cuts rows to max_length; here it has cut them already.
        trainer.padding_free = True
        trainer.data_collator = DataCollatorForLanguageModeling(trainer.data_collator.pad_token_id, padding_free=True)
    if config.joins_rows:
        check_isolation(config, trainer.model, trainer.data_collator)
    return trainer
