"""The network that a step runs: the model, with the head that its objective wants."""

from dataclasses import replace
from functools import lru_cache

from planner.config.run_config import Objective
from profiles.architecture import Architecture, Linear
from profiles.build_architecture import architecture
from profiles.errors import UnsupportedError
from profiles.model import ModelProfile


def network(model: ModelProfile, objective: Objective, tensor_parallel_size: int = 1) -> Architecture:
    """The parts of `model` as `objective` trains them.

    A reward model has a head of one score instead of words. TRL's trainers of preferences drop nothing out
    (disable_dropout, on in each of them).

    Of cards that split each product, one has its share of the attention heads and of the width of the MLP, and whole
    norms, embedding and head; the head is split as well, but its logits are gathered (Transformers 5.23,
    `base_model_tp_plan` of Llama). Raises UnsupportedError for heads that the cards cannot share.
    """
    parts = architecture(model if tensor_parallel_size == 1 else _split(model, tensor_parallel_size))
    if objective == "sft":
        return parts
    return _with_score(_without_dropout(parts)) if objective == "reward" else _without_dropout(parts)


@lru_cache(maxsize=256)
def _without_dropout(parts: Architecture) -> Architecture:
    return replace(parts, blocks=tuple(replace(block, dropout=()) for block in parts.blocks))


@lru_cache(maxsize=256)
def _split(model: ModelProfile, cards: int) -> ModelProfile:
    """The shape of the share that one of `cards` has."""
    widths = {
        name: size
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "moe_intermediate_size")
        if (size := getattr(model, name)) is not None
    }
    for name, size in widths.items():
        if size % cards:
            raise UnsupportedError(
                f"tensor_parallel_size is {cards}, which does not divide {name} {size} of {model.hf_id}",
                hint="use a divisor of it",
            )
    head_dim = model.head_dim
    if head_dim is None and model.kv_lora_rank is None:
        head_dim = model.hidden_size // model.num_attention_heads
    return model.model_copy(update={name: size // cards for name, size in widths.items()} | {"head_dim": head_dim})


@lru_cache(maxsize=256)
def _with_score(parts: Architecture) -> Architecture:
    return replace(parts, head=Linear("score", parts.head.in_features, 1), tied=False, logit_softcap=None)
