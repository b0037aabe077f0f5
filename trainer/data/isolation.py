"""Whether documents that are joined to one row see each other."""

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from planner.config.run_config import RunConfig
from profiles.errors import ConfigError

NUM_TOKENS = 8
"""Tokens of each of the two documents that are tried."""

AUTOCAST = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def check_isolation(
    config: RunConfig, model: PreTrainedModel | PeftModel, collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
) -> None:
    """Refuse to join rows if what comes second in a row depends on what comes first. Raises ConfigError.

    The model itself is asked, as it will train: of two documents, joined by `collator`, the gradient of the second
    one's output by the first one's tokens is exactly zero where the attention code keeps them apart.
    """
    if not _leaks(config, model, collator):
        return
    knob = "packing" if config.packing else "padding_free"
    raise ConfigError(
        f"{knob} is true, but with attn_implementation {config.attn_implementation} the rows that {config.model} reads "
        "joined see each other",
        hint=f"set {knob} to false",
    )


def _leaks(
    config: RunConfig, model: PreTrainedModel | PeftModel, collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
) -> bool:
    documents = [list(range(start, start + NUM_TOKENS)) for start in (0, NUM_TOKENS)]
    batch = collator([{"input_ids": ids, "seq_lengths": [NUM_TOKENS]} for ids in documents])
    inputs = {name: v.to(model.device) if isinstance(v, torch.Tensor) else v for name, v in batch.items()}
    del inputs["labels"]
    embedded: list[torch.Tensor] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda *call: embedded.append(call[2].requires_grad_()))
    was_training = model.training
    model.eval()
    try:
        with torch.enable_grad(), torch.autocast(model.device.type, AUTOCAST[config.mixed_precision], _casts(config)):
            logits = model(**inputs, use_cache=False).logits
        (gradient,) = torch.autograd.grad(logits[0, NUM_TOKENS:].float().sum(), embedded[0])
    finally:
        hook.remove()
        model.train(was_training)
    return bool(gradient[0, :NUM_TOKENS].any())


def _casts(config: RunConfig) -> bool:
    return config.mixed_precision != "no"
