"""The check of many files, and the GitHub Action and the pre-commit hook that run it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from planner.preflight import main

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "peers"
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    for name in ("axolotl-mistral-qlora.yml", "axolotl-llama-2-lora.yml"):
        shutil.copy(GOLDEN / name, tmp_path)
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    return tmp_path


def test_each_file_is_a_line_and_the_worst_decides(folder, capsys):
    assert main(["--gpu", "rtx-4090", "*.yml"]) == 1
    no, fits = capsys.readouterr().out.splitlines()
    assert no.startswith("axolotl-llama-2-lora.yml: no: meta-llama/Llama-2-7b-hf takes ")
    assert "The smallest change that fits: micro_batch_size: 1" in no
    assert fits.startswith("axolotl-mistral-qlora.yml: fits: mistralai/Mistral-7B-v0.1 takes ")
    assert main(["--gpu", "rtx-4090", "axolotl-mistral-qlora.yml"]) == 0


def test_changes_are_in_the_words_of_the_file(folder, capsys):
    assert main(["--gpu", "t4", "axolotl-mistral-qlora.yml"]) == 1
    said = capsys.readouterr().out
    assert "sample_packing: false" in said
    assert "fp16: true" in said


def test_what_could_turn_the_verdict_is_told(folder, capsys):
    path = Path("axolotl-mistral-qlora.yml")
    path.write_text(path.read_text() + "lora_modules_to_save: [embed_tokens]\n")
    assert main(["--gpu", "rtx-4090", str(path)]) == 0
    assert "; no plain yes: lora_modules_to_save may take more" in capsys.readouterr().out


def test_a_run_file_is_checked_as_well(folder, capsys):
    Path("run.yaml").write_text("model: mistralai/Mistral-7B-v0.1\nmethod: lora\nlora: {r: 8}\n")
    assert main(["--gpu", "t4", "run.yaml"]) in (0, 1)
    assert "run.yaml: " in capsys.readouterr().out
    Path("run.yaml").write_text("modell: x\nlora: {r: 8}\nmethod: lora\n")
    assert main(["--gpu", "t4", "run.yaml"]) == 2
    assert "did you mean model?" in capsys.readouterr().out


def test_a_file_that_is_no_configuration_fails_or_is_passed_over(folder, capsys):
    assert main(["--gpu", "t4", "compose.yaml"]) == 2
    assert "compose.yaml is in no known format" in capsys.readouterr().out
    assert main(["--gpu", "t4", "--skip-unknown", "compose.yaml"]) == 0


def test_strict_fails_on_what_is_not_counted(folder, capsys):
    shutil.copy(GOLDEN / "axolotl-llama-3-lora-8b.yml", "saves.yml")
    assert main(["--gpu", "h200", "saves.yml"]) == 0
    assert "Not counted: lora_modules_to_save" in capsys.readouterr().out
    assert main(["--gpu", "h200", "--strict", "saves.yml"]) == 2


def test_the_action_fails_with_a_note_at_the_file(folder):
    step = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"][-1]
    given = {"FILES": "*.yml\n", "GPU": "rtx-4090", "STRICT": "false"}
    assert step["env"].keys() == given.keys()
    summary = folder / "summary.md"
    github = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    run = subprocess.run(
        ["bash", "-e", "-c", step["run"]], env=ENVIRONMENT | given | github, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (1, "")
    assert "::error file=axolotl-llama-2-lora.yml::no: " in run.stdout
    assert "| axolotl-mistral-qlora.yml | passed |" in summary.read_text()


def test_the_action_takes_what_it_uses():
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    used = {value for step in action["runs"]["steps"] for value in step.get("env", {}).values()}
    assert used == {f"${{{{ inputs.{name} }}}}" for name in action["inputs"]}


def test_the_hook_checks_what_it_is_given(folder):
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    command = [*shlex.split(hook["entry"]), "--gpu", "rtx-4090", "compose.yaml", "axolotl-llama-2-lora.yml"]
    run = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (1, "")
    assert run.stdout.startswith("axolotl-llama-2-lora.yml: no: ")


def test_json_files_are_read(folder, capsys):
    Path("args.json").write_text(json.dumps({"output_dir": "out", "per_device_train_batch_size": 1}))
    assert main(["--gpu", "t4", "args.json"]) == 2
    assert "args.json names no model" in capsys.readouterr().out
