"""Recipes: settings that are known to work, each with its source (`recipes.toml`)."""

import tomllib
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt

from profiles.errors import ConfigError


class RecipeKnob(BaseModel):
    """A knob that a recipe pins: `set` is KNOB=VALUE."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    set: str
    why: str


class Recipe(BaseModel):
    """One recipe. The fields are explained in `recipes.toml`; `knobs` has the common ones too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    about: str
    model: str
    gpu: str
    data: str
    method: Literal["full", "lora", "qlora"]
    objective: Literal["sft", "dpo"]
    max_length: PositiveInt
    batch_size: PositiveInt
    source: str
    knobs: tuple[RecipeKnob, ...]

    @property
    def settings(self) -> tuple[str, ...]:
        """The knobs, each as KNOB=VALUE."""
        return tuple(knob.set for knob in self.knobs)


def find_recipe(name: str) -> Recipe:
    """The recipe of this name. Raises ConfigError with the nearest one."""
    recipes = all_recipes()
    if name.lower() in recipes:
        return recipes[name.lower()]
    nearest = get_close_matches(name.lower(), recipes, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else "`fitune recipes` lists them"
    raise ConfigError(f"there is no recipe {name}", hint=hint)


@cache
def all_recipes() -> dict[str, Recipe]:
    """Every recipe by its name, in the order of the file."""
    tables = tomllib.loads(Path(__file__).with_name("recipes.toml").read_text("utf-8"))
    return {name: _recipe(name, table, tables["common"]) for name, table in tables["recipes"].items()}


def _recipe(name: str, table: dict[str, Any], common: dict[str, Any]) -> Recipe:
    shared = common[table["common"]] if "common" in table else []
    own = {key: value for key, value in table.items() if key not in ("common", "knobs")}
    return Recipe.model_validate({"name": name, **own, "knobs": [*shared, *table.get("knobs", [])]})
