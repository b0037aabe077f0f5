"""Dtypes, quantization and attention code that suit a card and a model; `gpu` is None for a CPU.

What a card supports is in capabilities.toml, which wheel it needs in hardware.toml.
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

import profiles
from planner.config.run_config import AttentionImplementation, Dtype, Method, MixedPrecision, Quantization, RunConfig
from planner.step.resolve import check_encoder_decoder
from profiles.architecture import Architecture
from profiles.architecture_traits import traits_of_model
from profiles.build_architecture import architecture
from profiles.errors import ConfigError, UnsupportedError
from profiles.fp16_overflow import fp16_overflow_source
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile

RULES_FILE = Path(profiles.__path__[0]) / "hardware.toml"


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TorchWheel(_Facts):
    """Cards that need another wheel than the one on PyPI."""

    below_compute_capability: tuple[int, int]
    note: str
    source: str


class HardwareRules(_Facts):
    """All tables of hardware.toml."""

    torch_wheel: tuple[TorchWheel, ...]


@dataclass(frozen=True, slots=True)
class Precision:
    """Dtype of the weights as loaded, and the autocast of the forward pass."""

    dtype: Dtype
    mixed_precision: MixedPrecision


@cache
def hardware_rules() -> HardwareRules:
    """The facts of hardware.toml, read once."""
    return HardwareRules.model_validate(tomllib.loads(RULES_FILE.read_text("utf-8")))


def precisions(model: ModelProfile, gpu: GpuProfile | None, method: Method) -> tuple[Precision, ...]:
    """The precisions that train `model` on `gpu`, the least lossy first.

    Bfloat16 needs a card that computes in it: torch also accepts it on older ones and emulates it slowly. Updates get
    lost in float16, so weights that are trained stay float32 there. A frozen base never needs more than 16 bits.
    """
    if gpu is None:
        return (Precision("float32", "no"),)
    if gpu.supports_bf16:
        pure = Precision("bfloat16", "bf16")
        return (Precision("float32", "bf16"), pure) if method == "full" else (pure,)
    if fp16_overflow_source(model.model_type):
        return (Precision("float32", "no"),)
    return (Precision("float32" if method == "full" else "float16", "fp16"),)


def quantizations(gpu: GpuProfile | None) -> tuple[Quantization, ...]:
    """The formats of bitsandbytes that run on `gpu`, the least lossy first. FP4 is no better than NF4 in any way."""
    int8: tuple[Quantization, ...] = ("int8",) if gpu is None or gpu.supports_int8 else ()
    nf4: tuple[Quantization, ...] = ("nf4",) if gpu is None or gpu.supports_bnb_4bit else ()
    return int8 + nf4


def attention_implementations(model: Architecture, gpu: GpuProfile | None) -> tuple[AttentionImplementation, ...]:
    """The attention codes worth trying for `model` on `gpu`, the one that needs no package beside torch first.

    Transformers' sdpa cannot bound the scores (softcap). Eager is never smaller or faster than sdpa, so it only stands
    in. flash_attention_2 is a package of its own with kernels for newer cards. Raises UnsupportedError if none runs.
    """
    own: tuple[AttentionImplementation, ...] = ("eager",) if _bounds_scores(model) else ("sdpa", "eager")
    found = [code for code in own if code in model.attention_codes][:1]
    if "flash_attention_2" in model.attention_codes and gpu is not None and gpu.supports_flash_attention:
        found.append("flash_attention_2")
    if not found:
        raise UnsupportedError(
            f"the model only runs with {' or '.join(model.attention_codes)}, and {gpu.name if gpu else 'a CPU'} cannot",
            hint="name a card of compute capability 8.0 or newer",
        )
    return tuple(found)


def _bounds_scores(model: Architecture) -> bool:
    return any(block.attention.softcap is not None for block in model.blocks)


def objections(config: RunConfig, model: ModelProfile, gpu: GpuProfile | None) -> tuple[str, ...]:
    """Why `config` cannot train well on `gpu`, a sentence each; empty if nothing is known against it."""
    of_model = _objections_of_model(config, model)
    if gpu is not None:
        return (*of_model, *_objections_of_card(config, model, gpu))
    if config.mixed_precision == "fp16":
        return (*of_model, "mixed_precision is fp16, but a CPU cannot scale the loss; use no")
    return of_model


def _objections_of_model(config: RunConfig, model: ModelProfile) -> tuple[str, ...]:
    """What the model does not do, on whatever card."""
    found = []
    if model.is_encoder_decoder:
        try:
            check_encoder_decoder(config, model.hf_id)
        except ConfigError as error:
            found.append(error.message)
    elif config.joins_rows and not traits_of_model(model).isolates_documents:
        knob = "packing" if config.packing else "padding_free"
        found.append(
            f"{knob} joins rows, but attention in a {model.model_type} model does not keep them apart; set it to false"
        )
    if config.attn_implementation == "sdpa" and _bounds_scores(architecture(model)):
        found.append(f"attention in a {model.model_type} model bounds its scores, which sdpa cannot; use eager")
    return tuple(found)


def _objections_of_card(config: RunConfig, model: ModelProfile, gpu: GpuProfile) -> tuple[str, ...]:
    """What the card does not do, and what the model does not do in its number formats."""
    found = []
    if "bfloat16" in (config.dtype, _autocast(config)) and not gpu.supports_bf16:
        found.append(f"bfloat16 is only emulated on {gpu.name}; use float16 with mixed_precision fp16")
    if "float16" in (config.dtype, _autocast(config)) and (source := fp16_overflow_source(model.model_type)):
        found.append(f"{model.model_type} overflows in float16 ({source}); use bfloat16 or float32")
    if config.quantization == "int8" and not gpu.supports_int8:
        found.append(f"{gpu.name} has no int8 tensor cores, which LLM.int8() needs; use nf4")
    if config.quantization in ("nf4", "fp4") and not gpu.supports_bnb_4bit:
        found.append(f"bitsandbytes has no 4-bit kernels for {gpu.name}; use method lora")
    if config.attn_implementation == "flash_attention_2" and not gpu.supports_flash_attention:
        found.append(f"flash_attention_2 has no kernels for {gpu.name}; use sdpa")
    return tuple(found)


def wheel_note(gpu: GpuProfile | None) -> str | None:
    """What must be known about torch's wheels for `gpu`; None if the wheel of PyPI runs on it."""
    if gpu is None or gpu.compute_capability is None:
        return None
    wheels = hardware_rules().torch_wheel
    note = next((wheel.note for wheel in wheels if gpu.compute_capability < wheel.below_compute_capability), None)
    return f"{gpu.name}: {note}" if note else None


def _autocast(config: RunConfig) -> Dtype | None:
    autocast: dict[MixedPrecision, Dtype | None] = {"no": None, "fp16": "float16", "bf16": "bfloat16"}
    return autocast[config.mixed_precision]
