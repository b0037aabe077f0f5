"""A script trains what `fitune launch` trains; files for TRL's command line run to the end."""

import json
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from planner.config.run_config import DataKnobs
from planner.peers.export import export_run, write_export

pytestmark = pytest.mark.slow


def losses(output_dir):
    state = json.loads((Path(output_dir) / "checkpoint-3" / "trainer_state.json").read_text())
    return {entry["step"]: entry["loss"] for entry in state["log_history"] if "loss" in entry}


def export(config, target, folder):
    made = export_run(config, target, folder)
    write_export(made)
    return made.main


@pytest.fixture
def rows(data_file):
    """Writes rows of a format, a few different ones."""
    words = ("apple", "bridge", "candle", "desert", "engine", "forest", "garden", "hammer")
    make = {
        "text": lambda word: {"text": f"The word is {word}."},
        "alpaca": lambda word: {"instruction": "Say a word", "input": word, "output": word},
        "sharegpt": lambda word: {
            "conversations": [{"from": "human", "value": f"Say {word}"}, {"from": "gpt", "value": word}]
        },
        "preference": lambda word: {"prompt": f"Say {word}", "chosen": word, "rejected": "No."},
        "kto": lambda word: {"prompt": f"Say {word}", "completion": word, "label": len(word) % 2 == 0},
        "prompt-completion": lambda word: {"prompt": f"Say {word}", "completion": f" {word}"},
    }

    def write(kind):
        return data_file("".join(json.dumps(make[kind](word)) + "\n" for word in words), f"{kind}.jsonl")

    return write


RUNS = {
    "lora, messages": {},
    "qlora": {"method": "qlora", "quantization": "nf4"},
    "evaluation in between": {"eval_fraction": 0.25, "eval_steps": 2},
    "full, all logits, alpaca": {"method": "full", "loss": "full", "format": "alpaca"},
    "packed texts": {"packing": True, "format": "text"},
    "padding free, sharegpt": {"padding_free": True, "format": "sharegpt"},
    "other adapter, prompt and completion": {
        "method": "peft",
        "peft": {"type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []},
        "lora": None,
        "format": "prompt-completion",
    },
    "dpo, full": {"objective": "dpo", "method": "full", "format": "preference", "learning_rate": 1e-4},
    "kto": {"objective": "kto", "format": "kto"},
    "orpo": {"objective": "orpo", "format": "preference", "loss": "full"},
    "reward": {"objective": "reward", "format": "preference", "loss": "full"},
}


# What the libraries say about each other is for whoever runs a script to see.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", RUNS)
def test_a_script_has_the_losses_of_a_launch(name, tiny_config, train, rows, tmp_path):
    knobs = dict(RUNS[name])
    kind, share = knobs.pop("format", None), knobs.pop("eval_fraction", 0.0)
    if kind:
        knobs["data"] = DataKnobs(path=str(rows(kind)))
    config = tiny_config(save_steps=3, **knobs)
    config = config.model_copy(update={"data": config.data.model_copy(update={"eval_fraction": share})})
    train(config)
    launched = losses(config.output_dir)
    script = export(config.model_copy(update={"output_dir": str(tmp_path / "script")}), "script", tmp_path / "train.py")
    runpy.run_path(str(script), run_name="__main__")
    assert losses(tmp_path / "script") == launched
    assert len(launched) == 3
    assert (tmp_path / "script" / "final").is_dir()


@pytest.mark.parametrize(
    ("knobs", "kind"),
    [({"num_gpus": 2}, "messages"), ({"objective": "dpo", "method": "qlora", "quantization": "nf4"}, "preference")],
    ids=["sft of messages in two processes", "dpo of pairs on a quantized base"],
)
def test_a_file_for_trl_runs_to_the_end(knobs, kind, tiny_config, rows, tmp_path):
    data = {} if kind == "messages" else {"data": DataKnobs(path=str(rows(kind)))}
    config = tiny_config(save_steps=3, **knobs, **data)
    made = export_run(config, "trl", tmp_path)
    write_export(made)
    command = shlex.split(made.command)
    command[0] = str(Path(sys.executable).with_name("trl"))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert len(losses(config.output_dir)) == 3
