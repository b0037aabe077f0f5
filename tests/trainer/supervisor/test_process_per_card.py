import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from torch.distributed import DistNetworkError

from planner.config.run_config import ParallelKnobs
from planner.config.run_file import write_run_file
from trainer.run_folder.checkpoints import last_checkpoint
from trainer.run_folder.record import read_records
from trainer.supervisor import process_per_card

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


def machine(run_file, node_rank, port):
    """A launch of `run_file` as one of two machines."""
    argv = [sys.executable, "-m", "trainer.launch", str(run_file), "--node-rank", str(node_rank)]
    argv += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def trainer_of(output_dir, node_rank):
    """Number of the process that trains on a machine."""
    return json.loads((output_dir / ".status" / "0" / str(node_rank)).read_text().splitlines()[0])["pid"]


def test_two_machines_go_on_after_the_loss_of_a_process_and_stop_when_one_is_told_to(tiny_config, tmp_path):
    knobs = {"max_length": 32, "gradient_checkpointing": False, "max_steps": 500, "save_steps": 3}
    config = tiny_config(**knobs, num_nodes=2, parallel=ParallelKnobs(strategy="fsdp"))
    output_dir = Path(config.output_dir)
    write_run_file(config, tmp_path / "run.yaml")
    port = free_port()
    said = []
    with machine(tmp_path / "run.yaml", 0, port) as first, machine(tmp_path / "run.yaml", 1, port) as second:
        # If the run never ends, reading its output must.
        watchdog = threading.Timer(240, lambda: (first.kill(), second.kill()))
        watchdog.start()
        for line in first.stderr:
            said.append(line)
            if line.startswith("step 4/") and not any("restart" in one for one in said):
                os.kill(trainer_of(output_dir, 1), signal.SIGKILL)
            elif line.startswith("step 5/") and any("restart" in one for one in said):
                second.send_signal(signal.SIGUSR1)
        told = second.stderr.read()
        watchdog.cancel()
    text = "".join(said)
    # SIGUSR1 is for both, since the machines stop at the same step, but was sent to one.
    assert (first.returncode, second.returncode) == (128 + signal.SIGUSR1,) * 2, text + told
    killed = "process 1 was killed by SIGKILL (most often by the system, for lack of memory)"
    lost = f"{killed}, and the others of the run were ended; restart 1, from {output_dir}"
    assert f"{lost}/checkpoint-3\n" in text
    assert "restart" not in told
    assert "a checkpoint is written" in text
    stopped = last_checkpoint(output_dir)
    assert {file.name for file in stopped.glob("rng_state_*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    record = read_records(output_dir)[-1]
    assert (record.result.status, record.recoveries[0].lost) == ("interrupted", killed)


def test_machines_that_do_not_meet_are_told_where_to_look(capsys, monkeypatch):
    monkeypatch.setattr(
        process_per_card, "run", lambda _: (_ for _ in ()).throw(DistNetworkError("timed out after 9s"))
    )
    assert process_per_card.start("--nnodes", "2", "--master-addr", "head", "--master-port", "1", "script") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: the 2 machines did not meet at head:1: timed out after 9s\n\nhint: look whether all")


def test_a_port_that_is_taken_is_told(capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        there = ("--nnodes", "2", "--node-rank", "0", "--master-addr", "127.0.0.1", "--master-port", port)
        assert process_per_card.start(*there, "script") == 1
    assert capsys.readouterr().err.startswith(f"error: 127.0.0.1:{port} is in use by another program\n")
