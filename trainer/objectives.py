"""The trainer of a run's objective, ready to train."""

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer

from planner.run_config import RunConfig
from profiles.errors import DataError
from trainer.data import Examples
from trainer.hardware import cast_trainable_to_float32
from trainer.supervised import supervised_trainer


def make_trainer(
    config: RunConfig, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, examples: Examples
) -> Trainer:
    """A trainer that is ready to train `model`, with the loss and the dtypes of the run.

    Raises DataError if no row is left after rows without a token to learn are dropped.
    """
    trainer = supervised_trainer(config, model, tokenizer, examples)
    trainer.remove_callback(PrinterCallback)
    if config.method != "full":
        cast_trainable_to_float32(trainer.model)
    for name, dataset in (("train", trainer.train_dataset), ("evaluation", trainer.eval_dataset)):
        if dataset is not None and len(dataset) == 0:
            raise DataError(
                f"no {name} row has a token to learn within max_length {config.max_length}",
                hint="raise max_length, or shorten the prompts",
            )
    return trainer


def dropped_rows(config: RunConfig, examples: Examples, trainer: Trainer) -> int:
    """Rows that TRL left out because max_length cuts off all that could be learned; 0 with packing, which splits."""
    return 0 if config.packing else len(examples.train) - len(trainer.train_dataset)


def rows_at_limit(config: RunConfig, trainer: Trainer) -> int:
    """Rows that fill max_length and so may have lost their end."""
    if config.packing:
        return 0
    return sum(len(ids) == config.max_length for ids in trainer.train_dataset["input_ids"])
