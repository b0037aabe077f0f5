"""The process that trains: what is started, and how it ended. Needs no torch."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from planner.config.run_config import RunConfig
from profiles.errors import Moment
from trainer.supervisor.interruption import handling
from trainer.supervisor.meeting import Meeting

STATUS_FILE = "FITUNE_STATUS_FILE"
"""Variable that names the file in which the trainer leaves its process number, and how it ended, as lines of JSON."""

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The names of the settings of torch's allocator, the newer one first."""

ACCELERATE_CONFIG = Path(__file__).with_name("accelerate.yaml")


@dataclass(frozen=True, slots=True)
class Command:
    """A process to start: its arguments, and the variables that it gets on top of this process's own."""

    argv: tuple[str, ...]
    env: dict[str, str]

    def __str__(self) -> str:
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return " ".join([*variables, shlex.join(self.argv)])


@dataclass(frozen=True, slots=True)
class Ending:
    """How training ended; `exit_code` is None where no process could tell, and none did what it was to do.

    `out_of_memory` is what a process was doing when memory ended, None if that was not the reason; `step` the steps
    done then. `lost` is which of several processes was killed, in words, None if none was.
    """

    exit_code: int | None
    out_of_memory: Moment | None = None
    step: int = 0
    lost: str | None = None


def training_command(
    config: RunConfig, run_file: Path, *, resume: bool = False, meeting: Meeting | None = None
) -> Command:
    """What is started for this run: one process on one card or on the CPU, or one for each card of this machine.

    `meeting` is where several machines meet.
    """
    starter = _one_process(config) if config.world_size == 1 else _process_per_card(config, meeting)
    argv = [sys.executable, "-m", *starter]
    argv += [str(run_file)] + ["--resume"] * resume
    env = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if config.gpu is None:
        env["CUDA_VISIBLE_DEVICES"] = ""
    else:
        # As many of the cards that this process may use: TRL refuses to train where it sees more than one a process.
        usable = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(config.num_gpus)))).split(",")
        env["CUDA_VISIBLE_DEVICES"] = ",".join(usable[: config.num_gpus])
        # Versions of torch differ in which name comes first, so a user's setting of one must stand in both.
        given = (os.environ[name] for name in ALLOCATOR_VARIABLES if name in os.environ)
        env |= dict.fromkeys(ALLOCATOR_VARIABLES, next(given, "expandable_segments:True"))
    return Command(tuple(argv), env)


def _one_process(config: RunConfig) -> list[str]:
    argv = ["accelerate.commands.launch", "--quiet", "--config_file", str(ACCELERATE_CONFIG)]
    argv += ["--num_cpu_threads_per_process", str(_threads())]
    return [*argv, *["--cpu"] * (config.gpu is None), "--module", "trainer"]


def _process_per_card(config: RunConfig, meeting: Meeting | None) -> list[str]:
    # accelerate starts the same launcher on cards, but on CPUs it would ask for MPI.
    argv = ["trainer.supervisor.process_per_card", "--nproc-per-node", str(config.num_gpus)]
    if meeting is None:
        argv.append("--standalone")
    else:
        argv += ["--nnodes", str(config.num_nodes), "--node-rank", str(meeting.node_rank)]
        argv += ["--master-addr", meeting.address, "--master-port", str(meeting.port)]
    return [*argv, "--module", "trainer"]


def _threads() -> int:
    """Threads that the user allows, or else one for each core."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def run_training(command: Command, status: Path | None = None) -> Ending:
    """Run `command` to its end, and pass signals on to the trainer below it.

    `status` is the file of this machine in a folder that several machines share, where each tells how it went.
    """
    with tempfile.TemporaryDirectory(prefix="fitune-") as folder:
        status = status or Path(folder) / "status"
        env = {**os.environ, **command.env, STATUS_FILE: str(status)}
        # In a group of its own, so that Ctrl-C reaches the trainer once, from here, and not accelerate's process.
        # What lies between would end of a scheduler's signal to all processes; the trainer listens to it in any case.
        before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        process = subprocess.Popen(command.argv, env=env, process_group=0)
        signal.signal(signal.SIGUSR1, before)
        killed_by: int | None = None

        def forward(number: int, _: FrameType | None) -> None:
            nonlocal killed_by
            pids = [fact["pid"] for fact in _status(status) if "pid" in fact]
            if not pids:
                killed_by = number
                os.killpg(process.pid, signal.SIGKILL)
            for pid in pids:
                # Whoever is to be told may have ended just now.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

        with handling(forward):
            process.wait()
        ending = read_ending(*sorted(status.parent.iterdir()))
    return Ending(128 + killed_by) if ending.exit_code is None and killed_by is not None else ending


def read_ending(*statuses: Path) -> Ending:
    """How the trainer ended, by its own account; of several processes that of the one that failed."""
    facts = [fact for status in statuses for fact in _status(status)]
    last_words = [fact for fact in facts if "exit_code" in fact]
    # The others are stopped when one has failed; what they say of that is no reason.
    memory = next((words for words in last_words if "out_of_memory" in words), None)
    if memory is not None:
        return Ending(memory["exit_code"], memory["out_of_memory"], memory["step"])
    failures = [words["exit_code"] for words in last_words if words["exit_code"] in (1, 2) and "bereft" not in words]
    if failures:
        return Ending(failures[0])
    lost = next((fact["lost"] for fact in facts if "lost" in fact), None)
    bereft = [words["step"] for words in last_words if "bereft" in words]
    if lost is not None or bereft:
        return Ending(None, step=max(bereft, default=0), lost=lost or "a process of the run was killed")
    return Ending(max((words["exit_code"] for words in last_words), default=None))


def report(**facts: object) -> None:
    """Tell the launcher, if there is one, this process's number, and at the end how it ended."""
    path = os.environ.get(STATUS_FILE)
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")


def _status(path: Path) -> list[dict[str, Any]]:
    """What the processes that train have told so far."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
