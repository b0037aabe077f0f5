"""What stands for data in a trace: a tokenizer of three words, rows that nobody reads, and batches of fake tensors."""

from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, Trainer

from calibration.trace.recorder import Recorder
from planner.config.run_config import RunConfig
from trainer.data.examples import Examples
from trainer.loop.probe import longest_examples


class FakeBatches:
    """Stands for the trainer's data loader: the longest batch of the run, again and again, as fake tensors."""

    def __init__(self, trainer: Trainer, config: RunConfig, num_examples: int, recorder: Recorder) -> None:
        self.dataset = trainer.train_dataset
        self.batch_size = num_examples
        self._length = 2 * config.gradient_accumulation_steps
        encodes = trainer.model.config.is_encoder_decoder
        self._form = trainer.data_collator(longest_examples(config, num_examples, encodes))
        self._recorder = recorder

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.batch() for _ in range(self._length))

    def batch(self) -> dict[str, Any]:
        """One batch, made anew."""
        batch = {name: torch.empty_like(v) if isinstance(v, torch.Tensor) else v for name, v in self._form.items()}
        for name, value in batch.items():
            if isinstance(value, torch.Tensor):
                self._recorder.label(value, name, "", "batch")
        return batch


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of a few words: a trainer asks for one, a traced step for none of its words."""
    words = {"padding": 0, "end": 1, "a": 2}
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "a")))
    made.pad_token, made.eos_token = "padding", "end"
    return made


def examples(config: RunConfig, architecture: PreTrainedConfig) -> Examples:
    """Rows that a trainer of the objective accepts; the batches that are traced are made without them."""
    if architecture.is_encoder_decoder:
        row: dict[str, object] = {"prompt": "a", "completion": "a"}
    elif config.objective == "sft":
        row = {"text": "a a"}
    elif config.objective == "kto":
        row = {"prompt": "a", "completion": "a", "label": True}
    else:
        row = {"prompt": "a", "chosen": "a", "rejected": "a a"}
    return Examples(Dataset.from_list([row] * 2), None, "completion" in row, False, ())
