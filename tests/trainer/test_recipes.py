"""Each recipe, trained for real on a model of the same family that is small enough for a CPU."""

import json
import warnings
from pathlib import Path

import pytest

from planner.cli import main
from planner.config.run_file import read_run_file

pytestmark = pytest.mark.slow

QUESTION, ANSWER, WORSE = "What is 2 plus 2?", "2 plus 2 is 4.", "I do not know."
ROWS = {
    "alpaca": {"instruction": QUESTION, "input": "", "output": ANSWER},
    "sharegpt": {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]},
    "messages": {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]},
    "preference": {"prompt": QUESTION, "chosen": ANSWER, "rejected": WORSE},
    "prompt-completion": {"prompt": QUESTION, "completion": ANSWER},
}

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
T5 = {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4, "d_kv": 16, "feed_forward_proj": "gated-gelu"}
SHAPES = {"llama": SMALL, "mistral": {**SMALL, "num_key_value_heads": 2}, "phi": SMALL, "gpt_neox": SMALL, "t5": T5}

# A recipe of each family, form of data and objective; those of other sizes differ in the model alone.
STAND_INS = {
    "alpaca-7b": "llama",
    "vicuna-7b": "llama",
    "zephyr-sft": "mistral",
    "zephyr-dpo": "mistral",
    "phi-2-dpo": "phi",
    "flan-t5-base": "t5",
    "start-small-400m": "gpt_neox",
    "start-small-1b-lora": "gpt_neox",
}


def write_stand_in(folder: Path, tiny: Path, family: str) -> None:
    """A model of `family` with random weights and the tokenizer of the tiny model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    tokens = {"vocab_size": 2048, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "decoder_start_token_id": 2}
    config = AutoConfig.for_model(family, **SHAPES[family], **tokens)
    torch.manual_seed(0)
    model_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model_class.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(("recipe", "family"), STAND_INS.items(), ids=STAND_INS)
def test_a_recipe_trains_a_stand_in_of_its_family(recipe, family, tiny, tmp_path, train):
    from profiles.recipe import find_recipe

    known = find_recipe(recipe)
    write_stand_in(tmp_path / "model", tiny, family)
    data = tmp_path / "data.jsonl"
    data.write_text((json.dumps(ROWS[known.data]) + "\n") * 8)
    small = ["--gpu", "cpu", "--batch-size", "4", "--max-length", "64"]
    knobs = [f"data.path={data}", "max_steps=2", "logging_steps=1", f"output_dir={tmp_path / 'run'}"]
    settings = [part for knob in knobs for part in ("--set", knob)]
    path = tmp_path / "run.yaml"
    assert main(["plan", str(tmp_path / "model"), "--recipe", recipe, *small, *settings, "-o", str(path)]) == 0
    config = read_run_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        record = train(config)
    assert (record.result.status, record.result.steps) == ("completed", 2)
    assert record.result.loss > 0
    adapter = tmp_path / "run" / "final" / "adapter_config.json"
    assert adapter.exists() == (known.method != "full")


def test_every_family_of_the_recipes_has_a_stand_in():
    from profiles.model_catalog import find_model
    from profiles.recipe import all_recipes

    families = {(find_model(recipe.model).model_type, recipe.objective) for recipe in all_recipes().values()}
    tried = {(find_model(all_recipes()[name].model).model_type, all_recipes()[name].objective) for name in STAND_INS}
    assert families == tried
