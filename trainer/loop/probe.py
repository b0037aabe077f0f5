"""The longest step that the run could meet, tried before training instead of hours later."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from torch.optim import Optimizer
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from planner.config.run_config import RunConfig
from planner.units import format_bytes, format_seconds
from trainer.loop.meters import MemoryMeter

Example = dict[str, Any]
"""A tokenized row, as the collator of a trainer takes it."""

JOURNALS = ("_metrics", "_stored_metrics", "_total_train_tokens")
"""Where TRL's trainers note what passes them."""


class Probe(TrainerCallback):  # type: ignore[misc]
    """Before training, one step on rows of `max_length` tokens, and one evaluation if the run has any.

    The model, the optimizer and the loss are those of the trainer, with the pass of the reference where there is one,
    so this is the peak of the whole run: what does not fit fails here, and what is measured is the step that was
    predicted. Weights, optimizer, random state and logged figures are afterwards what they were, bit for bit.
    """

    def __init__(self, config: RunConfig, trainer: Trainer, memory: MemoryMeter, console: Console) -> None:
        self._config = config
        self._trainer = trainer
        self._memory = memory
        self._console = console

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel,
        optimizer: Any,  # noqa: ANN401  # accelerate's wrapper, or the optimizer itself
        **_: object,
    ) -> None:
        """Try the step and the evaluation, and say what they took."""
        began = time.perf_counter()
        devices = [args.device] if args.device.type == "cuda" else []
        self._memory.open()
        try:
            with (
                torch.random.fork_rng(devices=devices),
                _unnoted(self._trainer),
                _mode_kept(model),
                _with_states(getattr(optimizer, "optimizer", optimizer), self._memory),
            ):
                self._pass(model)
                if self._config.data is not None and self._config.data.eval_fraction > 0:
                    self._evaluate(model)
        finally:
            self._memory.close()
        peak = self._memory.allocated_bytes
        took = f"{format_bytes(peak)} at most, " if peak is not None else ""
        self._console.print(
            f"probe: the longest batch fits, {took}{format_seconds(time.perf_counter() - began)}", highlight=False
        )

    def _pass(self, model: PreTrainedModel) -> None:
        """Pass the longest batch; with accumulation twice, since the second micro-batch meets gradients."""
        model.train()
        for _micro_batch in range(min(2, self._config.gradient_accumulation_steps)):
            self._loss(model, self._config.per_device_train_batch_size).backward()
        model.zero_grad()

    def _evaluate(self, model: PreTrainedModel) -> None:
        model.eval()
        with torch.no_grad():
            self._loss(model, self._config.per_device_eval_batch_size)

    def _loss(self, model: PreTrainedModel, num_examples: int) -> torch.Tensor:
        examples = longest_examples(self._config, num_examples, model.config.is_encoder_decoder)
        batch = self._trainer.data_collator(examples)
        inputs = {name: v.to(model.device) if isinstance(v, torch.Tensor) else v for name, v in batch.items()}
        loss: torch.Tensor = self._trainer.compute_loss(model, inputs)
        return loss


@contextmanager
def _with_states(optimizer: Optimizer, memory: MemoryMeter) -> Iterator[None]:
    """Let `optimizer` do a step that moves nothing, for its states, and forget them at the end.

    All that a run does but its first pass, it does beside them. A resumed run has its states already. Those of a paged
    optimizer are no part of torch's memory on a card, and bitsandbytes never gives them back.
    """
    paged = getattr(optimizer, "is_paged", False) and optimizer.param_groups[0]["params"][0].is_cuda
    if optimizer.state or paged:
        yield
        return
    # Some optimizers keep counts of their own beside the learning rate.
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    try:
        with memory.in_optimizer():
            optimizer.step()
        optimizer.zero_grad()
        yield
    finally:
        optimizer.state.clear()
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            group.update(before)


@contextmanager
def _mode_kept(model: torch.nn.Module) -> Iterator[None]:
    """Each module trains or evaluates afterwards as it did before."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def _unnoted(trainer: Trainer) -> Iterator[None]:
    """What the trainer notes of batches in between is forgotten."""
    before = {name: copy.deepcopy(getattr(trainer, name)) for name in JOURNALS if hasattr(trainer, name)}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(trainer, name, value)


def longest_examples(config: RunConfig, num_examples: int, encodes: bool = False) -> list[Example]:
    """As many examples, with rows of max_length tokens, of which all that can count in the loss do.

    Of rows that are padded only the first has the full length, so that a batch of several needs a mask, as real ones
    do; a packed row holds two documents for the same reason. `encodes` means a model with an encoder, whose answers
    are as long as they may be.
    """
    shorter = config.max_length if config.joins_rows else max(1, config.max_length - 1)
    lengths = [config.max_length, *[shorter] * (num_examples - 1)]
    if encodes:
        answer = config.max_target_length or config.max_length
        return [_encoded(length, answer) for length in lengths]
    return [_example(config, length, number) for number, length in enumerate(lengths)]


def _encoded(length: int, answer: int) -> Example:
    return {"input_ids": _ids(length), "attention_mask": [1] * length, "labels": _ids(answer)}


def _example(config: RunConfig, length: int, number: int) -> Example:
    """One example; the rejected answer of a pair is a token shorter. Prompts are one token, which counts nowhere."""
    prompt, answer, other = _ids(1), _ids(length - 1), _ids(length - 2)
    match config.objective:
        case "sft":
            return {"input_ids": _ids(length), "seq_lengths": _documents(config, length)}
        case "reward":
            return {"chosen_ids": prompt + answer, "rejected_ids": prompt + other}
        case "orpo":
            return _side("prompt", prompt, []) | _side("chosen", prompt, answer) | _side("rejected", prompt, other)
        case "kto":
            judged = {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": answer}
            return judged | {"label": number % 2 == 0} | _asked_before(config, ("ref_logps", "ref_KL_logps"))
        case _:
            pair = {"prompt_ids": prompt, "chosen_ids": answer, "rejected_ids": other}
            return pair | _asked_before(config, ("ref_chosen_logps", "ref_rejected_logps"))


def _documents(config: RunConfig, length: int) -> list[int]:
    """Tokens of the documents in a row: nearly all in one, since kernels that know documents want the longest."""
    return [length - 1, 1] if config.packing and length > 1 else [length]


def _side(name: str, prompt: list[int], answer: list[int]) -> Example:
    """A row of ORPO's data, in its columns."""
    ids = prompt + answer
    labels = {f"{name}_labels": [-100] * len(prompt) + answer} if answer else {}
    return {f"{name}_input_ids": ids, f"{name}_attention_mask": [1] * len(ids)} | labels


def _asked_before(config: RunConfig, columns: tuple[str, ...]) -> dict[str, float]:
    """What the reference would have answered, where it is asked before training."""
    return dict.fromkeys(columns, 0.0) if config.asks_reference_before else {}


def _ids(length: int) -> list[int]:
    """As many tokens of no meaning; at least one."""
    return [0] * max(1, length)
