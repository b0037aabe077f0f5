import csv
from pathlib import Path

import pytest

from calibration.truth.peft_rows import EXPERIMENTS, peft_experiments
from profiles.peft_method import find_method

RUNS = EXPERIMENTS.with_name("runs.csv")

LLAMA_3_2_3B = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}


def measured_rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file) if row["id"].startswith("PEFT-")}


def test_each_experiment_is_a_row_of_the_measured_runs():
    rows = measured_rows(RUNS)
    assert {name: run_name(rows[name]) for name in peft_experiments()} == {
        name: run.experiment for name, run in peft_experiments().items()
    }


def run_name(row: dict[str, str]) -> str:
    """The experiment in the address of a row's source, whose file names it with two dashes."""
    return Path(row["source"]).stem.replace("--", "/", 1)


def test_each_published_method_and_option_is_known():
    for run in peft_experiments().values():
        find_method(run.peft_type).check_options(run.options)


def test_plain_lora_is_an_adapter_that_the_closed_form_describes():
    adapter = peft_experiments()["PEFT-035"].adapter
    assert (adapter.r, adapter.targets, adapter.options) == (64, ("q_proj", "v_proj"), None)


@pytest.mark.slow
# PEFT still uses names that Transformers will drop in its next major version.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Unsupported layer type:UserWarning")
@pytest.mark.parametrize(
    "row",
    ["PEFT-003", "PEFT-022", "PEFT-025", "PEFT-026", "PEFT-029", "PEFT-030", "PEFT-043", "PEFT-051", "PEFT-059"],
    ids=lambda row: f"{row} {peft_experiments()[row].peft_type}",
)
def test_as_many_parameters_learn_as_were_published(row):
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    from trainer.model.adapter import step_adapter_config

    run = peft_experiments()[row]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA_3_2_3B), dtype=torch.bfloat16)
        adapted = get_peft_model(model, step_adapter_config(run.adapter, model), low_cpu_mem_usage=True)
    assert adapted.get_nb_trainable_parameters()[0] == run.num_trainable_parameters
