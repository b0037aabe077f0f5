"""`fitune estimate` as a pre-flight check of other trainers' files."""

import json
import shutil
from pathlib import Path

import pytest

from planner.cli import main

GOLDEN = Path(__file__).parents[1] / "golden" / "peers"


@pytest.fixture
def mistral(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return Path(shutil.copy(GOLDEN / "axolotl-mistral-qlora.yml", tmp_path / "axolotl.yml"))


def test_the_answer_says_whose_file_it_is_and_what_would_fit(mistral, capsys):
    assert main(["estimate", "axolotl.yml", "--gpu", "t4"]) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("No: mistralai/Mistral-7B-v0.1 on one T4")
    assert "read as: a file of Axolotl (version 0.19.0)" in shown.out
    assert "keys: 28 understood, 13 without effect on memory, 1 at the default" in shown.out
    assert "against it: flash_attention_2 has no kernels for T4; use sdpa" in shown.out
    assert "attn_implementation flash_attention_2 sdpa" in " ".join(shown.out.split())
    assert "--fix writes that to axolotl.yml" in shown.err


def test_a_file_that_fits_returns_0(mistral, capsys):
    assert main(["estimate", "axolotl.yml", "--gpu", "a100-80gb"]) == 0
    assert capsys.readouterr().out.startswith("Yes: mistralai/Mistral-7B-v0.1")


def test_fix_changes_the_file_and_keeps_the_old_one(mistral, capsys):
    before = mistral.read_text()
    assert main(["estimate", "axolotl.yml", "--gpu", "t4", "--fix"]) == 0
    assert "axolotl.yml is written; the old one is axolotl.yml.bak" in capsys.readouterr().err
    assert Path("axolotl.yml.bak").read_text() == before
    assert mistral.read_text() != before
    assert main(["estimate", "axolotl.yml", "--gpu", "t4"]) == 0


def test_an_earlier_backup_is_never_overwritten(mistral):
    Path("axolotl.yml.bak").write_text("mine")
    assert main(["estimate", "axolotl.yml", "--gpu", "t4", "--fix"]) == 0
    assert Path("axolotl.yml.bak").read_text() == "mine"
    assert Path("axolotl.yml.bak1").exists()


def test_fix_can_leave_the_file_alone(mistral, capsys):
    before = mistral.read_text()
    assert main(["estimate", "axolotl.yml", "--gpu", "t4", "--fix", "-o", "fits.yml"]) == 0
    assert mistral.read_text() == before
    assert Path("fits.yml").exists()
    assert main(["estimate", "axolotl.yml", "--gpu", "t4", "--fix", "-o", "fits.yml"]) == 2
    assert "there is a file fits.yml already" in capsys.readouterr().err


def test_a_file_that_fits_is_not_written(mistral):
    before = mistral.stat().st_mtime_ns
    assert main(["estimate", "axolotl.yml", "--gpu", "a100-80gb", "--fix"]) == 0
    assert mistral.stat().st_mtime_ns == before
    assert not Path("axolotl.yml.bak").exists()


def test_json_has_each_key_and_the_change(mistral, capsys):
    assert main(["estimate", "axolotl.yml", "--gpu", "t4", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["format"], answer["trainer"], answer["verdict"]) == ("axolotl", "axolotl", "no")
    assert {"key": "adapter", "value": "qlora", "status": "understood", "why": "", "effect": None} in answer["keys"]
    changes = {change["key"]: change["new"] for change in answer["fix"]["changes"]}
    assert changes["fp16"] is True
    assert answer["fix"]["estimate"]["fits"]


def test_explain_shows_each_key(mistral, capsys):
    assert main(["estimate", "axolotl.yml", "--gpu", "a100-80gb", "--explain"]) == 0
    shown = capsys.readouterr().out
    assert "Each key:" in shown
    assert "warmup_ratio" in shown


def test_strict_refuses_what_is_not_counted(mistral, capsys):
    mistral.write_text(mistral.read_text() + "neftune_noise_alpha: 5\n")
    assert main(["estimate", "axolotl.yml", "--gpu", "a100-80gb"]) == 0
    assert "not counted: neftune_noise_alpha: 5" in capsys.readouterr().out
    assert main(["estimate", "axolotl.yml", "--gpu", "a100-80gb", "--strict"]) == 2
    assert "keys that are not in the estimate: neftune_noise_alpha" in capsys.readouterr().err


def test_what_is_not_counted_stands_beside_a_verdict_that_it_could_turn(mistral, capsys):
    text = mistral.read_text()
    mistral.write_text(text + "lora_modules_to_save: [embed_tokens]\n")
    assert main(["estimate", "axolotl.yml", "--gpu", "a100-80gb"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Tight: ")
    assert "but: no plain yes: lora_modules_to_save may take more" in shown
    assert main(["estimate", "axolotl.yml", "--gpu", "t4"]) == 1
    assert ", and what lora_modules_to_save adds." in capsys.readouterr().out
    mistral.write_text(text + "chunked_cross_entropy: true\n")
    assert main(["estimate", "axolotl.yml", "--gpu", "8gb", "--set", "attn_implementation=sdpa"]) == 1
    assert "but: no plain no: chunked_cross_entropy may take less" in capsys.readouterr().out
    assert main(["estimate", "axolotl.yml", "--gpu", "a100-80gb"]) == 0
    assert "but:" not in capsys.readouterr().out


def test_a_changed_value_is_shown_whole(mistral, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shutil.copy(GOLDEN / "axolotl-llama-3-lora-8b.yml", "llama.yml")
    assert main(["estimate", "llama.yml", "--gpu", "rtx-4090"]) == 1
    assert "(not there)  [axolotl.integrations.liger.LigerPlugin]" in capsys.readouterr().out


def test_knobs_of_the_command_line_come_before_keys_of_the_file(mistral, capsys):
    assert main(["estimate", "axolotl.yml", "--gpu", "a100-80gb", "--max-length", "512", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["max_length"] == 512


def test_training_arguments_need_a_model(tmp_path, capsys):
    path = tmp_path / "args.json"
    path.write_text('{"output_dir": "out", "per_device_train_batch_size": 1, "bf16": true}')
    assert main(["estimate", str(path), "--gpu", "a100-80gb"]) == 2
    assert "--model says which" in capsys.readouterr().err
    assert main(["estimate", str(path), "--gpu", "a100-80gb", "--model", "1b", "--method", "lora"]) == 0
    assert "read as: a file of Transformers TrainingArguments" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["7b", "--fix"], "--fix is for a file of another trainer, and 7b is none"),
        (["axolotl.yml", "-o", "x.yml"], "-o x.yml is for the file that --fix writes"),
        (["axolotl.yml", "--trainer", "trl"], "--trainer is trl, but axolotl.yml says whose step it is"),
        (["axolotl.yml", "--method", "full"], "--method is for a MODEL"),
        (["axolotl.yml", "--format", "trl"], "axolotl.yml names no model"),
        (["gone.yml"], "there is no"),
        (["compose.yml"], "compose.yml is in no known format"),
        (["broken.yml"], "broken.yml, line 2"),
        (["list.json"], "holds no `key: value` lines"),
    ],
)
def test_bad_input_is_told_in_a_sentence(mistral, capsys, arguments, message):
    Path("compose.yml").write_text("services: {}\n")
    Path("broken.yml").write_text("a: 1\n b: [\n")
    Path("list.json").write_text("[1]")
    assert main(["estimate", *arguments, "--gpu", "t4"]) == 2
    assert message in capsys.readouterr().err
