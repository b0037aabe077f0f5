"""Processes that train with a fault inside: what `trainer.launch` starts, with memory, disk or life ending at a moment.

The processes are forked from one that has the libraries loaded, so each starts in a moment. Nothing of the trainer is
replaced: a fault is an exception from a real call, a signal, or a file.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from planner.config.run_config import RunConfig
from planner.config.run_file import write_run_file
from trainer.processes.ranks import rank
from trainer.supervisor.recover import survive
from trainer.supervisor.training_process import STATUS_FILE, Ending, read_ending

STEP = 4
"""The step in which faults strike, or after which the checkpoint is written that they strike."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step that a process has done, and when."""

    number: int
    time: float
    process: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way from `launch` to an exit code: what was said, the steps that were done, when the fault struck."""

    exit_code: int
    said: str
    steps: list[Step]
    struck: float | None
    ended: float


class Launcher:
    """Launches runs as `trainer.launch` does, in processes of a server; `fault` strikes once, in the last one of a run.

    The processes of a run that has several find each other as torchrun would tell them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = multiprocessing.get_context("forkserver")
        self._server.set_forkserver_preload(["trainer.__main__", "trainer.run", "tests.trainer.injected"])
        self._launches = 0

    def launch(self, config: RunConfig, fault: str | None = None, *, resume: bool = False) -> Attempt:
        """Train `config` to its end, over all restarts."""
        self._launches += 1
        place = self._folder / str(self._launches)
        place.mkdir()
        run_file = place / "run.yaml"
        write_run_file(config, run_file)
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)

        def train(config: RunConfig, run_file: Path, resume: bool) -> Ending:
            status = place / "status"
            status.unlink(missing_ok=True)
            argv = [str(run_file), *["--resume"] * resume]
            processes = [
                self._server.Process(target=_train, args=(argv, status, place, fault, places))
                for places in _places(config.world_size)
            ]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            return read_ending(status)

        code = survive(config, run_file, resume=resume, max_restarts=10, train=train)
        steps = [Step(*json.loads(line)) for line in _text(place / "steps").splitlines()]
        struck = place / "struck"
        struck_at = struck.stat().st_mtime if struck.exists() else None
        return Attempt(code, _text(place / "said"), steps, struck_at, time.time())


def _places(world_size: int) -> list[dict[str, str]]:
    """What torchrun tells each process of a run; one alone is told nothing."""
    if world_size == 1:
        return [{}]
    with socket.create_server(("127.0.0.1", 0)) as server:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    shared = {**meeting, "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _train(argv: list[str], status: Path, place: Path, fault: str | None, told: dict[str, str]) -> None:
    """The process: what `python -m trainer` is, with a fault."""
    import torch

    from trainer.__main__ import main

    os.environ[STATUS_FILE] = str(status)
    os.environ.update(told)
    said = (place / "said").open("a")
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    torch.set_num_threads(1)
    _note_steps(place / "steps")
    if fault is not None and rank() == int(told.get("WORLD_SIZE", "1")) - 1:
        FAULTS[fault](place / "struck")
    sys.exit(main(argv))


def _note_steps(path: Path) -> None:
    """Write down each step that is done."""
    from trainer.supervisor.faults import StopOnSignal

    original = StopOnSignal.on_step_end

    def on_step_end(self, args, state, control, **others):
        with path.open("a") as file:
            file.write(json.dumps([state.global_step, time.time(), os.getpid()]) + "\n")
        return original(self, args, state, control, **others)

    StopOnSignal.on_step_end = on_step_end


def _strike(owner: object, method: str, due: Callable[..., bool], act: Callable[[], None], struck: Path) -> None:
    """Before the first call of `method` for which `due` is true, `act`, once in all processes."""
    original = getattr(owner, method)

    def call(*args, **kwargs):
        if not struck.exists() and due(*args):
            struck.touch()
            act()
        return original(*args, **kwargs)

    setattr(owner, method, call)


def _in_the_step(trainer, *_) -> bool:
    return trainer.state.global_step == STEP - 1


def _after_the_step(trainer, *_) -> bool:
    return trainer.state.global_step == STEP


def _always(*_) -> bool:
    return True


def _end_memory() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def _send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def _in_training(act: Callable[[], None]) -> Callable[[Path], None]:
    def inject(struck: Path) -> None:
        from transformers import Trainer

        _strike(Trainer, "training_step", _in_the_step, act, struck)

    return inject


def _in_first_step(struck: Path) -> None:
    from transformers import Trainer

    _strike(Trainer, "training_step", _always, _end_memory, struck)


def _in_the_probe(struck: Path) -> None:
    from trainer.loop.probe import Probe

    _strike(Probe, "_loss", _always, _end_memory, struck)


def _in_evaluation(struck: Path) -> None:
    from transformers import Trainer

    _strike(Trainer, "evaluation_loop", _always, _end_memory, struck)


def _in_saving(act: Callable[[], None]) -> Callable[[Path], None]:
    """Between the weights of a checkpoint and the optimizer's states."""

    def inject(struck: Path) -> None:
        from transformers import Trainer

        _strike(Trainer, "_save_optimizer_and_scheduler", _after_the_step, act, struck)

    return inject


def _is_due(checkpoint: Path) -> bool:
    return checkpoint.name == f"checkpoint-{STEP}"


def _before_the_seal(struck: Path) -> None:
    import trainer.run_folder.saving

    _strike(trainer.run_folder.saving, "seal", _is_due, _send(signal.SIGKILL), struck)


def _in_final_save(struck: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    _strike(
        PreTrainedTokenizerFast, "save_pretrained", lambda _, to: ".final" in str(to), _send(signal.SIGKILL), struck
    )


def _on_a_full_disk(struck: Path) -> None:
    """The file of the optimizer's states leads to a device that is always full."""
    from transformers import Trainer

    original = Trainer._save_optimizer_and_scheduler

    def save(self, output_dir):
        if not struck.exists() and _after_the_step(self):
            struck.touch()
            (Path(output_dir) / "optimizer.pt").symlink_to("/dev/full")
        return original(self, output_dir)

    Trainer._save_optimizer_and_scheduler = save


FAULTS: dict[str, Callable[[Path], None]] = {
    "memory ends on the longest batch, tried before training": _in_the_probe,
    "memory ends in the first step": _in_first_step,
    "memory ends in a step": _in_training(_end_memory),
    "memory ends in the evaluation": _in_evaluation,
    "memory ends while a checkpoint is written": _in_saving(_end_memory),
    "SIGTERM in a step": _in_training(_send(signal.SIGTERM)),
    "Ctrl-C in a step": _in_training(_send(signal.SIGINT)),
    "kill -9 in a step": _in_training(_send(signal.SIGKILL)),
    "kill -9 while a checkpoint is written": _in_saving(_send(signal.SIGKILL)),
    "kill -9 before a checkpoint is sealed": _before_the_seal,
    "kill -9 while the result is written": _in_final_save,
    "the disk is full while a checkpoint is written": _on_a_full_disk,
}
"""What each fault does to the process it is in; `struck` is the file that says that it has."""
