"""What each knob of a configuration would save or cost if it alone were turned."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from planner.config.run_config import REFERRING, ParallelKnobs, RunConfig
from planner.predict.prediction import Prediction, Target, predict
from planner.search.space import LAYOUTS, OPTIMIZERS, loss_paths
from planner.step.hardware import objections, quantizations
from profiles.errors import InputError


@dataclass(frozen=True, slots=True)
class Effect:
    """A change of knobs, in bytes of the process (negative: less), and as a factor of the speed where that is known."""

    change: str
    bytes: int
    speedup: float | None


def knob_effects(base: Prediction) -> tuple[Effect, ...]:
    """The effect of each single change that is possible, the largest saving first."""
    target = base.target
    assert target.model is not None, "the effects are those of the closed form"
    effects = []
    for change, knobs in _changes(base.config, target):
        try:
            config = RunConfig.model_validate(base.config.model_dump() | knobs)
            changed = predict(config, target)
        except (ValidationError, InputError):
            # A value that contradicts another knob, or that the trainer does not have, is no choice.
            continue
        if objections(config, target.model, target.gpu) or (target.gpu is None and _needs_a_card(config)):
            continue
        speedup = (
            changed.speed.tokens_per_second / base.speed.tokens_per_second if changed.speed and base.speed else None
        )
        effects.append(Effect(change, changed.estimate.process_bytes - base.estimate.process_bytes, speedup))
    return tuple(sorted(effects, key=lambda effect: effect.bytes))


def _changes(config: RunConfig, target: Target) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of changes and the knobs that make them."""
    assert target.model is not None
    yield from _batch_changes(config)
    yield from _checkpoint_changes(config)
    yield from _length_changes(config)
    if config.parallel is not None:
        yield from _layout_changes(config)
    for optim in OPTIMIZERS:
        if optim != config.optim:
            yield f"optim {optim}", {"optim": optim}
    if config.objective in REFERRING and config.preference is not None:
        asked_before = config.asks_reference_before
        change = "reference asked in each step" if asked_before else "reference asked before training"
        preference = config.preference.model_copy(update={"precompute_ref_log_probs": not asked_before})
        yield change, {"preference": preference.model_dump()}
    for loss in loss_paths(config.objective, target.model):
        if loss != config.loss:
            yield f"loss {loss}", {"loss": loss}
    if config.lora is not None:
        yield from _adapter_changes(config, target)


def _needs_a_card(config: RunConfig) -> bool:
    """Whether a setting moves memory between a card and its host."""
    return config.checkpoint_offload or config.optim.startswith("paged")


def _batch_changes(config: RunConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Micro-batches of half and twice the rows; the rows of an optimizer step stay."""
    rows, steps = config.per_device_train_batch_size, config.gradient_accumulation_steps
    for new_rows, new_steps in ((rows / 2, steps * 2), (rows * 2, steps / 2)):
        if new_rows == int(new_rows) and new_steps == int(new_steps):
            knobs = {"per_device_train_batch_size": int(new_rows), "gradient_accumulation_steps": int(new_steps)}
            yield f"batch {int(new_rows)} x {int(new_steps)}", knobs


def _checkpoint_changes(config: RunConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Other ways of keeping activations."""
    ways = {
        "checkpoints in host memory": (True, 1, True),
        "checkpoints of every layer": (True, 1, False),
        "checkpoints of every 2 layers": (True, 2, False),
        "no checkpoints": (False, 1, False),
    }
    now = (config.gradient_checkpointing, config.checkpoint_every_n_layers, config.checkpoint_offload)
    for change, way in ways.items():
        if way != now:
            names = ("gradient_checkpointing", "checkpoint_every_n_layers", "checkpoint_offload")
            yield change, dict(zip(names, way, strict=True))


def _layout_changes(config: RunConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """The ways to share the run that a search tries."""
    for layout in map(ParallelKnobs.model_validate, LAYOUTS):
        if layout != config.parallel:
            offloaded = ", all in host memory" if layout.offload != "none" else ""
            yield f"strategy {layout.strategy}{offloaded}", {"parallel": layout.model_dump()}


def _length_changes(config: RunConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    for length in (config.max_length // 2, config.max_length * 2):
        if length:
            yield f"max_length {length}", {"max_length": length}


def _adapter_changes(config: RunConfig, target: Target) -> Iterator[tuple[str, dict[str, Any]]]:
    """Other bases for the adapter, and other ranks."""
    assert config.lora is not None
    for quantization in (None, *quantizations(target.gpu)):
        if quantization != config.quantization:
            method = "qlora" if quantization else "lora"
            yield f"{quantization or '16-bit'} base", {"method": method, "quantization": quantization}
    for rank in (config.lora.r // 2, config.lora.r * 2):
        if rank:
            yield f"rank {rank}", {"lora": config.lora.model_dump() | {"r": rank}}
