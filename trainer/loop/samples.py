"""What the model says while it learns: answers to the prompts of the run file, every few steps."""

import json
from pathlib import Path

import torch
from rich.console import Console
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from planner.config.run_config import SampleKnobs

SAMPLES_FILE = "samples.jsonl"


class ShowSamples(TrainerCallback):  # type: ignore[misc]
    """Shows the likeliest answers, and keeps them in the run folder; training goes on as if nothing was asked."""

    def __init__(
        self, knobs: SampleKnobs, tokenizer: PreTrainedTokenizerBase, output_dir: Path, console: Console
    ) -> None:
        self._knobs = knobs
        self._tokenizer = tokenizer
        self._file = output_dir / SAMPLES_FILE
        self._console = console

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: PreTrainedModel, **_: object
    ) -> None:
        """Ask, if it is time."""
        if state.global_step % self._knobs.steps == 0 and state.is_world_process_zero:
            for prompt in self._knobs.prompts:
                self._keep(
                    state.global_step, prompt, answer(model, self._tokenizer, prompt, self._knobs.max_new_tokens)
                )

    def _keep(self, step: int, prompt: str, said: str) -> None:
        sample = {"step": step, "prompt": prompt, "answer": said}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(sample, ensure_ascii=False) + "\n")
        self._console.print(f"step {step}  {prompt!r} -> {said!r}", soft_wrap=True, highlight=False, markup=False)


def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int) -> str:
    """The likeliest continuation of `prompt`, at most `max_new_tokens` long; mode and random state stay as they are."""
    inputs = prompt_tokens(tokenizer, prompt)
    inputs = {name: ids.to(model.device) for name, ids in inputs.items()}
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            ids = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )[0]
    finally:
        model.train(training)
    # A decoder repeats the prompt; an encoder-decoder does not.
    start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True)).strip()


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> dict[str, torch.Tensor]:
    """Token ids and mask of `prompt`, each (1, length), as a user's turn if the tokenizer has a chat template."""
    if tokenizer.chat_template is None:
        return dict(tokenizer(prompt, return_tensors="pt"))
    messages = [{"role": "user", "content": prompt}]
    return dict(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    )
