"""The verbs that look facts up: which cards, models, recipes and methods are known, with all that is known of them."""

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field

from profiles.build_architecture import architecture
from profiles.errors import ConfigError, UnknownGpuError, UnknownModelError
from profiles.gpu import GpuProfile
from profiles.gpu_catalog import all_gpus
from profiles.model import ModelProfile
from profiles.model_catalog import all_models
from profiles.parameter_counts import parameter_counts
from profiles.peft_method import PeftMethod, find_method, peft_facts
from profiles.recipe import Recipe, all_recipes, find_recipe

Facts = dict[str, Any]

GpuWords = Annotated[str | None, Field(description="Part of a name or of a generation; None: all cards.")]
ModelWords = Annotated[str | None, Field(description="Part of a name or of an architecture; None: all models.")]
RecipeWord = Annotated[str | None, Field(description="Name of a recipe; None: all of them.")]
MethodWords = Annotated[str | None, Field(description="A method of PEFT, or part of its name; None: all of them.")]

CAPABILITIES = ("bf16", "tf32", "flash_attention", "memory_efficient_attention", "fp8", "int8", "bnb_4bit")


def gpus(words: GpuWords = None) -> Facts:
    """The cards that are known: memory as torch sees it, speed, price, what each supports, with sources."""
    return {"gpus": [gpu_facts(gpu) for gpu in find_gpus(words)]}


def models(words: ModelWords = None) -> Facts:
    """The models that are known without the Hub: their shapes and parameters, with sources."""
    return {"models": [model_facts(model) for model in find_models(words)]}


def recipes(name: RecipeWord = None) -> Facts:
    """Published settings to plan with, and where each comes from."""
    return {"recipes": [recipe.model_dump(mode="json") for recipe in find_recipes(name)]}


def methods(words: MethodWords = None) -> Facts:
    """The methods of PEFT, their options, and on which bases each was seen to train."""
    found = [method.model_dump(mode="json") for method in find_methods(words)]
    return {"peft_version": peft_facts().peft_version, "source": peft_facts().source, "methods": found}


def find_gpus(words: str | None) -> list[GpuProfile]:
    """The cards with `words` in a name or the generation. Raises UnknownGpuError if there are none."""
    found = [gpu for gpu in all_gpus() if words is None or _gpu_matches(gpu, words)]
    if not found:
        raise UnknownGpuError(f"no GPU has '{words}' in its name or generation", hint="`fitune gpus` lists all")
    return found


def gpu_facts(gpu: GpuProfile) -> Facts:
    """All that is known of `gpu` and what follows from it."""
    facts = gpu.model_dump(mode="json")
    facts["memory_bytes"] = gpu.memory_bytes
    facts["memory_measured"] = gpu.memory_measured
    facts["context_bytes"] = gpu.context_bytes
    facts["price_usd_per_hour"] = gpu.price.median_usd_per_hour if gpu.price else None
    facts["supports"] = {name: getattr(gpu, f"supports_{name}") for name in CAPABILITIES}
    return facts


def find_models(words: str | None) -> list[ModelProfile]:
    """The models with `words` in a name or the architecture, the smallest first. Raises UnknownModelError if none."""
    found = [model for model in all_models() if words is None or _model_matches(model, words)]
    if not found:
        raise UnknownModelError(f"no model has '{words}' in its name or architecture", hint="`fitune models` lists all")
    return sorted(found, key=num_parameters)


def num_parameters(model: ModelProfile) -> int:
    """All parameters of `model`."""
    return parameter_counts(architecture(model)).total


def model_facts(model: ModelProfile) -> Facts:
    """All that is known of `model`, with its parameters by group."""
    counts = parameter_counts(architecture(model))
    return {**model.model_dump(mode="json"), "num_parameters": {"total": counts.total, **asdict(counts)}}


def find_recipes(name: str | None) -> list[Recipe]:
    """The recipe of this name, or all. Raises ConfigError with the nearest one."""
    return [find_recipe(name)] if name else list(all_recipes().values())


def find_methods(words: str | None) -> list[PeftMethod]:
    """The method of PEFT of this name, or those with `words` in it. Raises ConfigError if there are none."""
    known = peft_facts().methods
    wanted = (words or "").upper()
    if wanted in known:
        return [known[wanted]]
    found = [method for name, method in known.items() if wanted in name]
    if not found:
        # Says which name is near.
        find_method(wanted)
        raise ConfigError(f"no method has '{words}' in its name", hint="`fitune methods` lists all")
    return found


def _gpu_matches(gpu: GpuProfile, words: str) -> bool:
    names = (gpu.name, gpu.nvml_name or "", gpu.architecture or "", gpu.vendor or "", *gpu.aliases)
    return any(words.lower() in name.lower() for name in names)


def _model_matches(model: ModelProfile, words: str) -> bool:
    return any(words.casefold() in name.casefold() for name in (model.hf_id, model.model_type, *model.aliases))
