"""The adapter of a run, for any method: what PEFT is told."""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from peft import PeftConfig, PeftType, TaskType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from planner.config.run_config import RunConfig
from planner.step.step_spec import Adapter
from profiles.errors import ConfigError

SCORE = "score"
"""The head of a decoder that classifies, in Transformers; a reward model has one class."""

READS_OUT_PROJ = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
"""Types whose kernels read the weight of `out_proj` past an adapter, so that PEFT refuses one there (peft 0.21.2,
`_check_lora_target_modules_mamba`)."""

UNKNOWN_STEPS = 10**9
"""Stands for AdaLoRA's number of steps until the trainer knows it (`trainer.model.rank_schedule`)."""


def adapter_config(config: RunConfig, model: PreTrainedModel) -> PeftConfig | None:
    """PEFT's description of the adapter of `config` on `model`; None for full fine-tuning.

    Raises ConfigError for what PEFT refuses.
    """
    if config.lora is not None:
        return make_peft_config("LORA", config.lora.model_dump(), model)
    if config.peft is not None:
        return make_peft_config(config.peft.type, config.peft.options, model)
    return None


def step_adapter_config(adapter: Adapter, model: PreTrainedModel) -> PeftConfig:
    """PEFT's description of the adapter of a step: with the same cost, though scale and first values are PEFT's own."""
    if adapter.options is not None:
        return make_peft_config(adapter.peft_type, {name: json.loads(value) for name, value in adapter.options}, model)
    options = {"target_modules": adapter.targets, "lora_dropout": adapter.dropout, "use_dora": adapter.use_dora}
    return make_peft_config("LORA", {"r": adapter.r, **options}, model)


def make_peft_config(peft_type: str, options: Mapping[str, Any], model: PreTrainedModel) -> PeftConfig:
    """The configuration of PEFT's method `peft_type` with `options` in PEFT's own names.

    `all-linear` is spelled out, because PEFT would also wrap what is no Linear module: a router, and all experts of a
    layer at once. Raises ConfigError for what PEFT refuses.
    """
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type)]
    known = {field.name for field in fields(config_class)}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    if values.get("target_modules") == "all-linear":
        values["target_modules"] = linear_names(model)
    if "fan_in_fan_out" in known:
        # GPT-2 keeps its Linear weights transposed.
        values["fan_in_fan_out"] = any(isinstance(module, Conv1D) for module in model.modules())
    if "total_step" in known:
        values.setdefault("total_step", UNKNOWN_STEPS)
    try:
        return config_class(task_type=task_type(model), **values)
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"PEFT refuses the options of {peft_type}: {first_line(error)}") from error


def task_type(model: PreTrainedModel) -> TaskType:
    """PEFT's name of what `model` does. With SEQ_CLS it also trains the score, and saves it with the adapter."""
    if model.config.is_encoder_decoder:
        return TaskType.SEQ_2_SEQ_LM
    return TaskType.SEQ_CLS if hasattr(model, SCORE) else TaskType.CAUSAL_LM


def linear_names(model: PreTrainedModel) -> list[str]:
    """Last parts of the names of all Linear modules that can have an adapter, which the head cannot, sorted.

    A number says nothing by itself, so the part before it comes along: layers have numbers too.
    """
    head = getattr(model, SCORE, None) or model.get_output_embeddings()
    # Llama 4's router is a Linear by its class alone: it returns two tensors. DeepSeek 4's works on groups of features.
    names = {
        _last_part(name)
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
        and module is not head
        # A part of a model that is one itself has a head too.
        and not name.endswith(".lm_head")
        and not type(module).__name__.endswith(("Router", "GroupedLinear"))
    }
    return sorted(names - {"out_proj"} if model.config.model_type in READS_OUT_PROJ else names)


def _last_part(path: str) -> str:
    *before, last = path.split(".")
    return ".".join([*before[-1:], last]) if last.isdecimal() else last


def first_line(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
