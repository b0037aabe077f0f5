"""What a run gives up when memory ends, one rung at a time. What it learns stays the same. Needs no torch.

Each rung keeps the effective batch, the learning rate and the order of the data, and costs time only.
"""

from collections.abc import Iterator
from typing import Any

from planner.config.run_config import LOSS_PATHS, RunConfig
from planner.memory.estimate import estimate
from planner.step.resolve import resolve_step
from profiles.errors import InputError, Moment
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import resolve_model

Changes = dict[str, tuple[Any, Any]]
"""Knobs that differ between two configurations: what they were, and what they are."""


def next_rung(config: RunConfig, moment: Moment) -> RunConfig | None:
    """The mildest change of `config` that is predicted to need less memory than it at `moment`; None if none is left.

    Where the model's memory is not described, the mildest change is taken at its word.
    """
    if moment == "loading":
        return None
    needed = needed_bytes(config, moment)
    for changes in _milder_first(config, moment):
        candidate = RunConfig.model_validate({**config.model_dump(), **changes})
        if needed is None or (needed_bytes(candidate, moment) or 0) < needed:
            return candidate
    return None


def needed_bytes(config: RunConfig, moment: Moment) -> int | None:
    """Peak of live tensors that `config` is predicted to have at `moment`; None where it cannot be predicted."""
    try:
        model = resolve_model(config.model).profile
        gpu = find_gpu(config.gpu) if config.gpu is not None else None
        phases = estimate(model, resolve_step(config, model, gpu), gpu).phases
    except InputError:
        return None
    if moment == "evaluation":
        return phases.get("evaluation")
    return max(size for phase, size in phases.items() if phase != "evaluation")


def changes(before: RunConfig, after: RunConfig) -> Changes:
    """What a rung changed."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    return {name: (old[name], new[name]) for name in old if old[name] != new[name]}


def in_words(changed: Changes) -> str:
    """What a rung changed, in a line."""
    return ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changed.items())


def advice(config: RunConfig, moment: Moment) -> str:
    """What the user can do about the end of memory: the next rung, or what changes the result where none is left."""
    rung = next_rung(config, moment)
    if rung is not None:
        return " and ".join(f"set {name} to {new}" for name, (_, new) in changes(config, rung).items()).lower()
    if "fused" in LOSS_PATHS[config.objective] and config.loss == "full":
        return "set loss to fused"
    if config.method == "lora":
        return "set method to qlora with quantization nf4"
    if moment == "loading":
        return "take a smaller model, or a card with more memory"
    return "lower max_length"


def _milder_first(config: RunConfig, moment: Moment) -> Iterator[dict[str, Any]]:
    """Changes of knobs that could help at `moment`."""
    if moment == "evaluation" and config.per_device_eval_batch_size > 1:
        rows = config.per_device_eval_batch_size
        yield {"per_device_eval_batch_size": rows // _smallest_factor(rows)}
    rows = config.per_device_train_batch_size
    # The loss of kto compares the examples of one micro-batch, so it would be another one.
    if rows > 1 and config.objective != "kto":
        factor = _smallest_factor(rows)
        yield {
            "per_device_train_batch_size": rows // factor,
            "gradient_accumulation_steps": config.gradient_accumulation_steps * factor,
        }
    if not config.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    elif config.checkpoint_every_n_layers > 1:
        yield {"checkpoint_every_n_layers": config.checkpoint_every_n_layers // 2}
    elif config.gpu is not None and not config.checkpoint_offload:
        yield {"checkpoint_offload": True}


def _smallest_factor(number: int) -> int:
    """The smallest divisor above 1."""
    return next(factor for factor in range(2, number + 1) if number % factor == 0)
