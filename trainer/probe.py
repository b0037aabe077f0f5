"""The longest batch that the run could meet, tried in its first step instead of hours later."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from planner.run_config import RunConfig

Collator = Callable[[list[dict[str, list[int]]]], dict[str, Any]]
"""Makes a batch of rows of token ids."""


class LongestBatch(TrainerCallback):  # type: ignore[misc]
    """After the first step, passes a batch of rows of `max_length` tokens forward and backward, and trains nothing.

    By then the optimizer has its states, so this is the peak of the whole run: what does not fit fails here, and what
    is measured is the step that was predicted. Weights, gradients and the random state are left as they were.
    """

    def __init__(self, config: RunConfig, collator: Collator) -> None:
        self._config = config
        self._collator = collator
        self._done = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: PreTrainedModel, **_: object
    ) -> None:
        """Pass the batch, once."""
        if self._done:
            return
        self._done = True
        devices = [args.device] if args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            # With accumulation, the second micro-batch meets the gradients of the first.
            for _micro_batch in range(min(2, self._config.gradient_accumulation_steps)):
                self._loss(model, self._config.per_device_train_batch_size).backward()
            model.zero_grad()
            if self._config.data is not None and self._config.data.eval_fraction > 0:
                self._evaluate(model)

    def _evaluate(self, model: PreTrainedModel) -> None:
        model.eval()
        with torch.no_grad():
            self._loss(model, self._config.per_device_eval_batch_size)
        model.train()

    def _loss(self, model: PreTrainedModel, num_rows: int) -> torch.Tensor:
        batch = longest_batch(self._config, self._collator, num_rows)
        inputs = {name: v.to(model.device) if isinstance(v, torch.Tensor) else v for name, v in batch.items()}
        if self._config.loss == "fused":
            inputs["fused_lm_head"] = True
        loss: torch.Tensor = model(**inputs, use_cache=False).loss
        return loss


def longest_batch(config: RunConfig, collator: Collator, num_rows: int) -> dict[str, Any]:
    """What `collator` makes of `num_rows` rows of max_length tokens, each of which counts in the loss.

    Without packing only the first row has the full length, so that the batch needs a mask if it has several rows.
    """
    shorter = config.max_length if config.packing else max(1, config.max_length - 1)
    lengths = [config.max_length, *[shorter] * (num_rows - 1)]
    batch: dict[str, Any] = collator([{"input_ids": [0] * length, "seq_lengths": [length]} for length in lengths])
    return batch
