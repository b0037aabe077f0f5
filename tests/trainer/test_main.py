import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from planner.config.run_config import DataKnobs
from planner.config.run_file import write_run_file
from trainer.run_folder.checkpoints import last_checkpoint
from trainer.run_folder.record import read_records

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_file(tmp_path):
    def write(config):
        write_run_file(config, tmp_path / "run.yaml")
        return tmp_path / "run.yaml"

    return write


@pytest.fixture
def main(monkeypatch, train):
    from trainer.__main__ import main

    return lambda *argv: main([str(word) for word in argv])


def test_a_run_prints_what_was_predicted_and_measured(tiny_config, run_file, main, capsys):
    config = tiny_config(max_steps=1)
    output_dir = Path(config.output_dir)
    output_dir.mkdir()
    (output_dir / "prediction.json").write_text(json.dumps({"allocated_bytes": 50 << 20, "tokens_per_second": 100}))
    assert main(run_file(config)) == 0
    printed = capsys.readouterr()
    assert "predicted" in printed.out
    assert "50.0 MiB" in printed.out
    assert "step 1/1" in printed.err
    assert f"done: {output_dir}/final" in printed.err
    assert read_records(output_dir)[0].predicted.tokens_per_second == 100


def test_a_run_that_is_complete_has_no_step_left(tiny_config, run_file, main, capsys):
    path = run_file(tiny_config(max_steps=1))
    output_dir = path.with_name("run")
    assert main(path) == 0
    capsys.readouterr()
    result = output_dir / "final" / "adapter_model.safetensors"
    trained = result.read_bytes()
    result.unlink()
    assert main(path, "--resume") == 0
    assert result.read_bytes() == trained
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "no step was left to do: 1 of 1 are done" in printed.err


def test_bad_data_is_one_sentence_and_exit_code_2(tiny_config, run_file, main, data_file, capsys):
    path = data_file('{"text": "a"}\n{"text": 3}\n')
    assert main(run_file(tiny_config(data=DataKnobs(path=str(path))))) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}, line 2: text must be text, but is 3\n")


def test_a_run_file_that_is_none_is_exit_code_2(tmp_path, main, capsys):
    assert main(tmp_path / "none.yaml") == 2
    assert capsys.readouterr().err.startswith("error: there is no run file")


def test_memory_that_ends_is_one_sentence_and_exit_code_1(tiny_config, run_file, main, monkeypatch, capsys):
    from trl import SFTTrainer

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(SFTTrainer, "training_step", fail)
    assert main(run_file(tiny_config())) == 1
    error = capsys.readouterr().err
    assert "error: out of memory in step 1 of 3" in error
    assert "Traceback" not in error


def launched(run_file, *options):
    """The launcher as a process, with one thread for the trainer."""
    argv = [sys.executable, "-m", "trainer.launch", str(run_file), *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_launched_run_that_is_told_to_stop_keeps_a_checkpoint_says_so_and_can_go_on(tiny_config, run_file, train):
    config = tiny_config(max_steps=400, save_steps=400)
    process = launched(run_file(config))
    # If the run never gets to a step, reading its output must still end.
    watchdog = threading.Timer(180, process.kill)
    watchdog.start()
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("step 2/"):
            process.send_signal(signal.SIGTERM)
    said = "".join(lines)
    assert process.wait() == 128 + signal.SIGTERM, said
    watchdog.cancel()
    process.stdout.close()
    process.stderr.close()
    assert "SIGTERM: finishing this step, then writing a checkpoint" in said
    assert "a checkpoint is written" in said
    assert "--resume`" in said
    stopped = last_checkpoint(Path(config.output_dir))
    step = int(stopped.name.removeprefix("checkpoint-"))
    assert 2 <= step < 400
    assert not (Path(config.output_dir) / "final").exists()
    assert read_records(Path(config.output_dir))[0].result.status == "interrupted"
    record = train(config.model_copy(update={"max_steps": step + 2}), resume=True)
    assert (record.result.status, record.result.steps) == ("completed", step + 2)
