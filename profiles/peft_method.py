"""What PEFT's methods take and train on (`peft_methods.toml`, which `python -m trainer.methods.survey` writes)."""

import json
import tomllib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from profiles.errors import ConfigError

FACTS = Path(__file__).with_name("peft_methods.toml")

Base = Literal["float32", "bfloat16", "int8", "nf4"]
"""Bases that were tried: the dtype of plain weights, or the format of quantized ones."""

KINDS: dict[str, Callable[[object], bool]] = {
    "null": lambda value: value is None,
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "list": lambda value: isinstance(value, list | tuple),
    "dict": lambda value: isinstance(value, Mapping),
}
"""The kinds of values by the names that the file gives them."""


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PeftOption(_Facts):
    """An option of a method. A default that is not there is null, or PEFT's own secret."""

    type: str = Field(description="kinds and JSON values that it takes, joined by |")
    default: Any = None

    def takes(self, value: object) -> bool:
        """Whether `value` is of one of the kinds."""
        return any(
            KINDS[term](value) if term in KINDS else json.loads(term) == value for term in self.type.split(" | ")
        )


class Outcome(_Facts):
    """What became of training on one base."""

    works: bool
    needs: Mapping[str, bool | str] = Field(default_factory=dict, description="knobs of the run without which it fails")
    reason: str | None = Field(default=None, description="why it fails")


class PeftMethod(_Facts):
    """One method of PEFT."""

    name: str = Field(description="PEFT's name of it")
    trains: str = Field(description="what learns: modules that are wrapped, or a prompt")
    example: Mapping[str, Any] = Field(description="options with which it was tried")
    required: tuple[str, ...] = Field(description="options that it cannot do without")
    options: Mapping[str, PeftOption]
    resumes: bool = Field(description="whether training goes on from a checkpoint as if it had not stopped")
    bases: Mapping[Base, Outcome]

    @property
    def works(self) -> bool:
        """Whether it trains on any base."""
        return any(outcome.works for outcome in self.bases.values())

    def check_options(self, options: Mapping[str, object]) -> None:
        """Raise ConfigError for an option that is missing, unknown or of the wrong kind."""
        for name in self.required:
            if name not in options:
                raise ConfigError(f"{self.name} needs the option {name}, for example {name}: {self.example[name]}")
        for name, value in options.items():
            if name not in self.options:
                near = get_close_matches(name, self.options, n=1)
                way_out = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(self.options))}"
                raise ConfigError(f"{self.name} has no option {name}; {way_out}")
            if not self.options[name].takes(value):
                raise ConfigError(f"{name} is {json.dumps(value)}, but {self.name} takes {self.options[name].type}")

    def check_base(self, base: Base, knobs: Mapping[str, object]) -> None:
        """Raise ConfigError if it does not train on `base`, or not with these `knobs` of the run."""
        check_outcome(self.name, self.bases, base, knobs)


class LoraVariant(_Facts):
    """LoRA with some options of its own, such as DoRA."""

    options: Mapping[str, Any]
    bases: Mapping[Base, Outcome]


class PeftFacts(_Facts):
    """The whole file."""

    peft_version: str
    source: str
    methods: Mapping[str, PeftMethod]
    lora_variants: tuple[LoraVariant, ...]


def base_of(quantization: str | None, dtype: str) -> Base:
    """The base among those that were tried that answers for weights of `dtype`, or packed as `quantization`.

    fp4 has nf4's layer in bitsandbytes; float16 stands in line with bfloat16, which a CPU can train in.
    """
    if quantization is not None:
        return "int8" if quantization == "int8" else "nf4"
    return "float32" if dtype == "float32" else "bfloat16"


def check_lora(options: Mapping[str, object], base: Base, knobs: Mapping[str, object]) -> None:
    """Raise ConfigError if a variant of LoRA among `options` does not train on `base`."""
    for variant in peft_facts().lora_variants:
        if variant.options.items() <= options.items():
            words = ", ".join(f"{name} {json.dumps(value)}" for name, value in variant.options.items())
            check_outcome(f"LoRA with {words}", variant.bases, base, knobs)


def check_outcome(what: str, bases: Mapping[Base, Outcome], base: Base, knobs: Mapping[str, object]) -> None:
    """Raise ConfigError if `what` did not train on `base` where it was tried, or needs other `knobs` of the run."""
    outcome, called = bases[base], f"a base in {knobs['quantization'] or knobs['dtype']}"
    if not outcome.works:
        works = [name for name, other in bases.items() if other.works]
        way_out = f"it trains on {', '.join(works)}" if works else "it trains on no base; `fitune methods` lists others"
        raise ConfigError(f"{what} does not train on {called} ({outcome.reason}); {way_out}")
    for knob, value in outcome.needs.items():
        if knobs[knob] != value:
            raise ConfigError(f"{knob} is {_word(knobs[knob])}, but on {called} {what} only trains with {_word(value)}")


def _word(value: object) -> str:
    """A value as a run file has it."""
    return value if isinstance(value, str) else json.dumps(value)


def find_method(name: str) -> PeftMethod:
    """The method that PEFT calls `name`, in any case. Raises ConfigError."""
    methods = peft_facts().methods
    if name.upper() in methods:
        return methods[name.upper()]
    near = get_close_matches(name.upper(), methods, n=1)
    question = f"did you mean {near[0]}?" if near else "`fitune methods` lists them"
    raise ConfigError(f"PEFT {peft_facts().peft_version} has no method {name}; {question}")


@cache
def peft_facts() -> PeftFacts:
    """All of `peft_methods.toml`."""
    tables = tomllib.loads(FACTS.read_text("utf-8"))
    methods = {name: {"name": name} | table for name, table in tables.pop("methods").items()}
    return PeftFacts.model_validate(tables | {"methods": methods})
