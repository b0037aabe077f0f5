from typing import get_args

import pytest

from planner.config.run_config import DataFormat
from profiles.errors import ConfigError
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model
from profiles.recipe import all_recipes, find_recipe


@pytest.mark.parametrize("recipe", all_recipes().values(), ids=lambda recipe: recipe.name)
def test_model_card_and_data_are_known(recipe):
    assert find_model(recipe.model).hf_id == recipe.model
    assert find_gpu(recipe.gpu).name == recipe.gpu
    assert recipe.data in get_args(DataFormat)


@pytest.mark.parametrize("recipe", all_recipes().values(), ids=lambda recipe: recipe.name)
def test_each_knob_is_pinned_once_and_says_why(recipe):
    names = [setting.partition("=")[0] for setting in recipe.settings]
    assert len(set(names)) == len(names)
    assert all(knob.why for knob in recipe.knobs)
    assert recipe.source


def test_a_recipe_is_found_in_any_case():
    assert find_recipe("Zephyr-DPO").objective == "dpo"


def test_an_unknown_recipe_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="there is no recipe zephyr-dop") as caught:
        find_recipe("zephyr-dop")
    assert caught.value.hint == "did you mean zephyr-dpo?"
