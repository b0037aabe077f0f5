import json

import pytest

from planner.cli import main
from planner.config.run_file import read_run_file
from profiles.recipe import all_recipes
from trainer.launch import launch


@pytest.mark.parametrize("recipe", all_recipes().values(), ids=lambda recipe: recipe.name)
def test_each_recipe_fits_its_card_and_passes_a_dry_run(recipe, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    assert main(["plan", "--recipe", recipe.name, "-o", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "fits"
    config = read_run_file(path)
    assert (config.model, config.gpu) == (recipe.model, recipe.gpu)
    assert (config.method, config.objective) == (recipe.method, recipe.objective)
    assert (config.max_length, config.effective_batch_size) == (recipe.max_length, recipe.batch_size)
    assert launch(config, path, dry_run=True) == 0
    assert "--module trainer" in capsys.readouterr().out


def test_a_recipe_pins_its_knobs(tmp_path):
    path = tmp_path / "run.yaml"
    assert main(["plan", "--recipe", "zephyr-dpo", "-o", str(path)]) == 0
    config = read_run_file(path)
    assert (config.lora.r, config.lora.lora_alpha, config.lora.lora_dropout) == (16, 16, 0.05)
    assert (config.learning_rate, config.preference.beta) == (5e-6, 0.01)


def test_what_the_user_gives_comes_before_the_recipe(tmp_path):
    path = tmp_path / "run.yaml"
    own = ["--gpu", "a100-40gb", "--max-length", "256", "--batch-size", "8", "--set", "learning_rate=1e-3"]
    assert main(["plan", "llama2-7b", "--recipe", "alpaca-7b", *own, "--lora-r", "4", "-o", str(path)]) == 0
    config = read_run_file(path)
    assert (config.model, config.gpu) == ("meta-llama/Llama-2-7b-hf", "A100-SXM4-40GB")
    assert (config.max_length, config.effective_batch_size, config.learning_rate) == (256, 8, 1e-3)
    assert (config.lora.r, config.lora.lora_alpha) == (4, 16)


def test_a_recipe_on_a_card_that_is_too_small_says_no(capsys):
    assert main(["plan", "--recipe", "alpaca-65b", "--gpu", "t4"]) == 1
    assert capsys.readouterr().out.startswith("No: huggyllama/llama-65b (65.3B parameters) does not fit one T4")


def test_the_next_command_names_the_recipe_and_not_its_knobs(capsys):
    assert main(["plan", "--recipe", "phi-2-dpo"]) == 0
    command = "fitune plan microsoft/phi-2 --gpu T4 --recipe phi-2-dpo --data DATA.jsonl -o run.yaml"
    assert command in " ".join(capsys.readouterr().out.split())


def test_a_plan_of_nothing_is_bad_input(capsys):
    assert main(["plan"]) == 2
    assert capsys.readouterr().err == (
        "error: a plan is for a MODEL, and none is named\n\nhint: name one, or a --recipe that has one\n"
    )


def test_an_unknown_recipe_is_bad_input(capsys):
    assert main(["plan", "--recipe", "zephir-dpo"]) == 2
    assert "hint: did you mean zephyr-dpo?" in capsys.readouterr().err


def test_recipes_lists_all(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(all_recipes())


def test_one_recipe_shows_where_each_knob_comes_from(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["recipes", "alpaca-13b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "alpaca-13b: LLaMA 13B that follows instructions"
    assert "  learning_rate      2e-4      the script's, for 7B and 13B" in lines
    assert lines[-1] == "Next: fitune plan --recipe alpaca-13b --data DATA.jsonl -o run.yaml"


def test_recipes_json_has_every_fact(capsys):
    assert main(["recipes", "flan-t5-base", "--json"]) == 0
    (recipe,) = json.loads(capsys.readouterr().out)["recipes"]
    assert recipe["knobs"][0]["set"] == "learning_rate=3e-4"
    assert recipe["source"].startswith("huggingface/transformers#13240")
