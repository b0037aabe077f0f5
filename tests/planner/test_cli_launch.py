import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from planner.cli import main
from planner.commands import launch as launch_command
from planner.commands.launch import run_process, trainer_argv
from planner.records.run_record import RECORD_FILE, Prediction
from profiles.detect import DetectedGpu
from profiles.gpu_catalog import find_gpu
from trainer.supervisor.recover import MAX_RESTARTS

PLAN = ("plan", "llama2-7b", "--gpu", "t4", "--method", "qlora")


@pytest.fixture
def run_file(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    assert main([*PLAN, "--set", f"output_dir={tmp_path / 'run'}", "-o", str(path)]) == 0
    capsys.readouterr()
    return path


@pytest.fixture
def started(monkeypatch):
    """The commands that a launch starts, with the prediction that each of them is handed."""
    calls = []

    def pretend(argv, stdout=None):
        prediction = Path(argv[argv.index("--prediction") + 1])
        calls.append((argv, json.loads(prediction.read_text())))
        return 7

    monkeypatch.setattr(launch_command, "run_process", pretend)
    return calls


def test_the_trainer_is_another_process():
    flags = {"--resume": True, "--auto-resume": False, "--dry-run": True}
    argv = trainer_argv(Path("run.yaml"), Path("p.json"), flags, {"--max-restarts": 3, "--node-rank": None})
    start = [sys.executable, "-m", "trainer.launch"]
    options = ["--prediction", "p.json", "--max-restarts", "3", "--resume", "--dry-run"]
    assert argv == [*start, "run.yaml", *options]


def test_launch_returns_the_code_of_the_trainer_and_hands_it_the_prediction(run_file, started, capsys):
    assert main(["launch", str(run_file)]) == 7
    ((argv, prediction),) = started
    assert argv[-1] != "--dry-run"
    assert Prediction.model_validate(prediction).process_bytes == prediction["process_bytes"]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Yes: meta-llama/Llama-2-7b-hf on one T4 with qlora nf4 r16 takes ")


def test_launch_json_is_the_prediction_and_the_exit_code(run_file, started, capsys):
    assert main(["launch", str(run_file), "--json"]) == 7
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 7
    assert document["record"] is None
    assert document["verdict"] == "fits"


def test_a_run_that_does_not_fit_is_refused_with_one_that_does(run_file, started, capsys):
    run_file.write_text(run_file.read_text().replace("max_length: 2048", "max_length: 65536"))
    assert main(["launch", str(run_file)]) == 1
    assert not started
    out = capsys.readouterr().out
    assert out.startswith("No: ")
    assert "--force starts this one all the same" in out


def test_what_is_free_on_the_card_now_decides_and_not_what_was_planned_for(run_file, started, monkeypatch, capsys):
    free = 12 * 2**30
    card = DetectedGpu(
        index=0,
        uuid="GPU-0",
        name="Tesla T4",
        profile=find_gpu("t4"),
        total_bytes=15 * 2**30,
        free_bytes=free,
        processes=(),
        driver_version="580.95",
        display_active=False,
        is_mig_instance=False,
    )
    monkeypatch.setattr("profiles.detect.detect_usable_gpus", lambda: (card,))
    assert main(["launch", str(run_file), "--json"]) == 7
    assert json.loads(capsys.readouterr().out)["usable_bytes"] <= free
    monkeypatch.setattr("profiles.detect.detect_usable_gpus", lambda: (replace(card, free_bytes=2**30),))
    assert main(["launch", str(run_file)]) == 1
    assert len(started) == 1
    assert capsys.readouterr().out.startswith("No: ")


def test_the_help_names_the_trainers_own_number_of_restarts(capsys):
    assert main(["launch", "--help"]) == 0
    assert f" {MAX_RESTARTS} if not given." in " ".join(capsys.readouterr().out.split())


def test_force_starts_it_all_the_same(run_file, started, capsys):
    run_file.write_text(run_file.read_text().replace("max_length: 2048", "max_length: 65536"))
    assert main(["launch", str(run_file), "--force"]) == 7
    assert len(started) == 1


@pytest.mark.parametrize(("code", "expected"), [("0", 0), ("3", 3)])
def test_the_exit_code_of_a_process_is_returned(code, expected):
    assert run_process([sys.executable, "-c", f"raise SystemExit({code})"]) == expected


def test_a_process_that_a_signal_ends_returns_128_and_its_number():
    assert run_process([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 128 + 9


def test_a_signal_reaches_the_process_and_its_code_comes_back():
    child = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "print('ready', flush=True); time.sleep(30)"
    )
    argv = [sys.executable, "-c", child]
    parent = f"import sys; from planner.commands.launch import run_process; sys.exit(run_process({argv!r}))"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 5
    process.stdout.close()


def write_record(folder: Path, predicted: int | None, measured: int, restarts: int = 0) -> None:
    folder.mkdir(parents=True)
    line = {
        "config": {"model": "llama2-7b"},
        "predicted": {"allocated_bytes": predicted} if predicted else None,
        "measured": {"allocated_bytes": measured, "tokens_per_second": 123.4},
        "environment": {"gpu": None},
        "result": {"status": "completed", "loss": 1.5},
        "recoveries": [{}] * restarts,
    }
    (folder / RECORD_FILE).write_text(json.dumps(line) + "\n")


def test_runs_shows_predicted_beside_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    write_record(tmp_path / "runs/a", 2 << 30, 1 << 31)
    write_record(tmp_path / "runs/b", None, 1 << 30)
    assert main(["runs"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "  run     model      card  ended      predicted  measured  error  tokens/s   loss",
        "  runs/a  llama2-7b  CPU   completed    2.0 GiB   2.0 GiB  +0.0%       123  1.500",
        "  runs/b  llama2-7b  CPU   completed          -   1.0 GiB      -       123  1.500",
    ]


@pytest.mark.parametrize(("restarts", "words"), [(1, "completed, restarted once"), (2, "completed, restarted 2 times")])
def test_runs_says_how_often_memory_ended(tmp_path, monkeypatch, capsys, restarts, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    write_record(tmp_path / "runs/a", 1 << 31, 1 << 31, restarts)
    assert main(["runs"]) == 0
    assert words in capsys.readouterr().out


def test_runs_json_has_the_whole_records(tmp_path, capsys):
    write_record(tmp_path / "a", 1, 1)
    assert main(["runs", str(tmp_path), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["folder"] == str(tmp_path / "a")
    assert run["measured"]["tokens_per_second"] == 123.4


def test_a_file_that_is_no_record_is_bad_input(tmp_path, capsys):
    (tmp_path / RECORD_FILE).write_text("no json\n")
    assert main(["runs", str(tmp_path)]) == 2
    assert "is not a record" in capsys.readouterr().err


def test_a_folder_without_runs_is_no_error(tmp_path, capsys):
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr() == ("", f"no run is recorded under {tmp_path}\n")


def test_an_adapter_that_is_not_described_is_predicted_by_a_trace(tmp_path, monkeypatch, capsys):
    path, calls = tmp_path / "run.yaml", []
    path.write_text("model: SmolLM2-135M\nmethod: peft\npeft: {type: loha}\nmax_length: 64\n", encoding="utf-8")
    monkeypatch.setattr(launch_command, "run_process", lambda argv, stdout: calls.append(argv) or 0)
    assert main(["launch", str(path), "--dry-run", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "note: the closed form describes the memory of LoRA, but not of LOHA; tracing the step instead" in err
    assert json.loads(out)["by"] == "trace"
    assert "--prediction" in calls[0]
