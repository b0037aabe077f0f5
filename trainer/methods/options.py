"""The methods of the installed PEFT and their options, as PEFT's own configuration classes declare them."""

import dataclasses
import enum
import json
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from peft import PeftConfig, PeftType, PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

GENERAL = {field.name for field in dataclasses.fields(PeftConfig)}
FROM_THE_MODEL = {field.name for field in dataclasses.fields(PromptLearningConfig)} - {
    "num_virtual_tokens",
    "modules_to_save",
} | {"fan_in_fan_out"}
FROM_THE_RUN = {"total_step"}
OTHER_RUNTIMES = {"runtime_config", "megatron_config", "megatron_core"}
NOT_OPTIONS = GENERAL | FROM_THE_MODEL | FROM_THE_RUN | OTHER_RUNTIMES
"""Fields of configurations that PEFT or the trainer fills in, or that belong to runtimes which this trainer is not."""

SIMPLE = {bool: "bool", int: "int", float: "float", str: "str", type(None): "null", dict: "dict"}


def method_names() -> list[str]:
    """PEFT's names of all methods that it has a configuration for, sorted."""
    return sorted(method.value for method in PEFT_TYPE_TO_CONFIG_MAPPING)


def is_prompt_method(name: str) -> bool:
    """Whether a method learns a prompt in place of wrapping modules."""
    return issubclass(config_class(name), PromptLearningConfig)


def config_class(name: str) -> type[PeftConfig]:
    """The configuration class of a method."""
    found: type[PeftConfig] = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name)]
    return found


def options_of(name: str) -> dict[str, dict[str, Any]]:
    """For each option of a method its `type`, in the words of `profiles.peft_method`, and its `default` if it has one.

    Source: the dataclass of its configuration.
    """
    hints = get_type_hints(config_class(name))
    return {
        field.name: _option(field, hints[field.name])
        for field in dataclasses.fields(config_class(name))
        if field.name not in NOT_OPTIONS
    }


def _option(field: "dataclasses.Field[Any]", hint: object) -> dict[str, Any]:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    kinds = _kinds(hint)
    if default is None and "null" not in kinds:
        kinds.append("null")
    value = default.value if isinstance(default, enum.Enum) else default
    known = isinstance(value, bool | int | float | str | list | dict)
    # Typing may hand out an equal union of another order.
    return {"type": " | ".join(sorted(set(kinds)))} | ({"default": value} if known else {})


def _kinds(hint: object) -> list[str]:
    """The terms of a type: names of kinds, and single values as JSON."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return [term for part in get_args(hint) for term in _kinds(part)]
    if origin is Literal:
        # A pattern in brackets, as in pissa_niter_[number of iters], stands for many words.
        return ["str" if "[" in str(value) else json.dumps(value) for value in get_args(hint)]
    plain = origin or hint
    if plain in SIMPLE:
        return [SIMPLE[plain]]
    if isinstance(plain, type) and issubclass(plain, enum.Enum):
        return [json.dumps(member.value) for member in plain]
    return ["list"] if plain in (list, tuple, set) else ["dict"]
