import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from planner.run_file import write_run_file
from trainer.checkpoints import last_checkpoint
from trainer.record import read_records

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def logged_losses(output_dir):
    lines = [json.loads(line) for line in Path(output_dir, "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def launched(run_file, *options, stop_at=None):
    """Exit code and stderr of a launch; a line that begins with `stop_at` is answered by SIGTERM."""
    argv = [sys.executable, "-m", "trainer.launch", str(run_file), *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        # If the run never ends, reading its output must.
        watchdog = threading.Timer(240, run.kill)
        watchdog.start()
        lines = []
        for line in run.stderr:
            lines.append(line)
            if stop_at and line.startswith(stop_at):
                run.send_signal(signal.SIGTERM)
        watchdog.cancel()
    return run.returncode, "".join(lines)


def test_two_processes_that_are_stopped_and_resumed_learn_as_one_with_twice_the_accumulation(
    tiny_config, train, tmp_path
):
    knobs = {"max_steps": 12, "save_steps": 20, "max_length": 32, "gradient_checkpointing": False}
    one = tiny_config(**knobs, gradient_accumulation_steps=2, output_dir=str(tmp_path / "one"))
    train(one)
    two = tiny_config(**knobs, num_gpus=2, output_dir=str(tmp_path / "two"))
    assert two.effective_batch_size == one.effective_batch_size
    run_file = tmp_path / "two.yaml"
    write_run_file(two, run_file)

    code, said = launched(run_file, stop_at="step 1/")
    assert code == 128 + signal.SIGTERM, said
    # Both processes are told, and one of them speaks.
    assert said.count("SIGTERM: finishing this step") == 1
    assert said.endswith("--resume`\n")
    stopped = last_checkpoint(Path(two.output_dir))
    assert {file.name for file in stopped.glob("rng_state_*")} == {"rng_state_0.pth", "rng_state_1.pth"}

    code, said = launched(run_file, "--resume")
    assert code == 0, said
    losses = logged_losses(two.output_dir)
    assert [step for step, _ in losses] == list(range(1, 13))
    assert losses == [(step, pytest.approx(loss, rel=1e-5)) for step, loss in logged_losses(one.output_dir)]
    assert [record.result.status for record in read_records(Path(two.output_dir))] == ["interrupted", "completed"]
