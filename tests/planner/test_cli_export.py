"""`fitune export`: files of other trainers, complete, and refusals."""

import ast
import json
from pathlib import Path

import pytest
import yaml

from planner.cli import main
from planner.peers.check import check_file, peer_of

ROWS = {
    "messages": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "alpaca": {"instruction": "a", "output": "b"},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "text": {"text": "a"},
    "prompt-completion": {"prompt": "a", "completion": "b"},
    "preference": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "kto": {"prompt": "a", "completion": "b", "label": True},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, row in ROWS.items():
        Path(f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    knobs = ["--set", "optim=adamw_8bit", "--set", "attn_implementation=sdpa", "--set", "gradient_checkpointing=true"]
    knobs += ["--set", "checkpoint_every_n_layers=1"]
    assert main(["plan", "llama3-8b", "--gpu", "a100-80gb", "--method", "qlora", *knobs, "-o", "run.yaml"]) == 0
    return tmp_path


def export(*arguments, data="messages", target="axolotl"):
    return main(["export", "run.yaml", "--to", target, "-o", "out", "--set", f"data.path={data}.jsonl", *arguments])


@pytest.mark.parametrize("target", ["axolotl", "llama-factory", "trl", "unsloth"])
def test_a_file_says_what_it_is_for_and_how_to_start_it(folder, target, capsys):
    capsys.readouterr()
    assert export(target=target) == 0
    shown = capsys.readouterr()
    path = Path(shown.out.splitlines()[0])
    head = path.read_text().splitlines()[:3]
    assert head[0].startswith("# meta-llama/Meta-Llama-3-8B on A100-SXM4-80GB, written by fitune on ")
    assert head[1].startswith("# For ")
    assert head[2].startswith("# Start: ")
    assert f"Next: {head[2].removeprefix('# Start: ')}" in shown.err


@pytest.mark.parametrize("target", ["axolotl", "llama-factory", "trl", "unsloth"])
def test_what_was_planned_to_fit_fits_as_the_other_trainer_runs_it(folder, target, capsys):
    capsys.readouterr()
    assert export(target=target) == 0
    path = Path(capsys.readouterr().out.splitlines()[0])
    answer = check_file(*peer_of(path), "a100-80gb")
    assert answer.file.peer.name == target
    assert answer.file.not_counted == ()
    assert answer.verdict == "fits"


def test_llama_factory_gets_its_data_described(folder):
    assert export(target="llama-factory") == 0
    info = json.loads(Path("out/dataset_info.json").read_text())
    assert info["fitune_data"]["file_name"] == "../messages.jsonl"
    assert yaml.safe_load(Path("out/llama_factory.yaml").read_text())["dataset"] == "fitune_data"


@pytest.mark.parametrize("data", ["messages", "alpaca", "sharegpt", "text", "prompt-completion"])
@pytest.mark.parametrize("target", ["axolotl", "llama-factory", "script"])
def test_rows_of_each_format_are_described(folder, target, data):
    assert export(data=data, target=target) == 0


def test_a_script_is_one_python_program(folder, capsys):
    capsys.readouterr()
    assert main(["export", "run.yaml", "--to", "script", "-o", "t.py", "--set", "data.path=messages.jsonl"]) == 0
    assert capsys.readouterr().out == "t.py\n"
    tree = ast.parse(Path("t.py").read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {"read_rows", "example", "settings", "load_model", "main"} <= names


def test_json_lists_the_files(folder, capsys):
    capsys.readouterr()
    assert export("--json", target="llama-factory") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {
        "to": "llama-factory",
        "files": ["out/llama_factory.yaml", "out/dataset_info.json"],
        "command": "llamafactory-cli train out/llama_factory.yaml",
        "remarks": [],
    }


def test_nothing_is_overwritten_unless_forced(folder, capsys):
    assert export() == 0
    assert export() == 2
    assert "there is a file out/axolotl.yaml already" in capsys.readouterr().err
    assert export("--force") == 0


def test_what_is_left_out_is_told(folder, capsys):
    assert export("--set", 'samples={"prompts": ["Hello"]}') == 0
    assert "left out: samples, which axolotl has no key for" in capsys.readouterr().err
    assert "# Left out: samples" in Path("out/axolotl.yaml").read_text()


@pytest.mark.parametrize(
    ("target", "data", "settings", "message"),
    [
        ("axolot", "messages", [], "--to is axolot, which is not written"),
        ("trl", "alpaca", [], "rows in the format alpaca are not read by TRL's command line"),
        ("axolotl", "messages", ["packing=true"], "packing with sdpa attention mixes documents in Axolotl"),
        ("llama-factory", "messages", ["checkpoint_every_n_layers=2"], "LLaMA-Factory checkpoints each layer or none"),
        ("unsloth", "messages", ["optim=sgd"], "optim is sgd, which Unsloth's command line cannot say"),
        ("trl", "messages", ["dtype=float16", "mixed_precision=fp16"], "stops at the first step in TRL 1.16"),
        ("trl", "preference", ["objective=orpo", "loss=full"], "for which TRL 1.16 has no command"),
        ("trl", "messages", ["num_gpus=8", "num_nodes=2"], "the run is for 2 machines, and exports are for one"),
        ("unsloth", "messages", ["num_gpus=2"], "parallel.strategy is ddp, which is not written for unsloth"),
        ("trl", "gone", [], "how the rows of gone.jsonl read cannot be seen from here"),
    ],
)
def test_what_cannot_be_said_is_refused(folder, capsys, target, data, settings, message):
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert export(*arguments, data=data, target=target) == 2
    assert message in capsys.readouterr().err


def test_a_run_without_data_is_refused(folder, capsys):
    assert main(["export", "run.yaml", "--to", "trl", "-o", "out"]) == 2
    assert "the run file has no data section" in capsys.readouterr().err


def test_a_model_without_a_chat_template_gets_one(folder, capsys):
    model = Path("model")
    model.mkdir()
    (model / "tokenizer_config.json").write_text("{}")
    run = Path("run.yaml").read_text().replace("model: meta-llama/Meta-Llama-3-8B", "model: model")
    Path("run.yaml").write_text(run)
    assert export(target="trl") == 0
    assert yaml.safe_load(Path("out/trl.yaml").read_text())["chat_template_path"] == "out/chat_template.jinja"
    assert "{% generation %}" in Path("out/chat_template.jinja").read_text()


@pytest.mark.parametrize(
    ("target", "start", "companions"),
    [
        ("trl", "trl sft --config out/trl.yaml --accelerate_config out/accelerate.yaml", ["out/accelerate.yaml"]),
        ("script", "accelerate launch --config_file out/accelerate.yaml out/train.py", ["out/accelerate.yaml"]),
        ("axolotl", "axolotl train out/axolotl.yaml --num-processes 4", []),
        ("llama-factory", "FORCE_TORCHRUN=1 NPROC_PER_NODE=4 llamafactory-cli train out/llama_factory.yaml", []),
    ],
)
def test_several_cards_have_their_files_and_their_start(folder, capsys, target, start, companions):
    capsys.readouterr()
    assert export("--set", "num_gpus=4", target=target) == 0
    shown = capsys.readouterr()
    assert f"Next: {start}" in shown.err
    assert [path for path in companions if path not in shown.out.splitlines()] == []


def test_deepspeed_has_a_file_of_its_own(folder):
    settings = ["num_gpus=4", "parallel.strategy=zero2", "optim=adamw_torch_fused"]
    assert export(*(part for one in settings for part in ("--set", one))) == 0
    assert yaml.safe_load(Path("out/axolotl.yaml").read_text())["deepspeed"] == "out/deepspeed.json"
    assert json.loads(Path("out/deepspeed.json").read_text())["zero_optimization"]["stage"] == 2
