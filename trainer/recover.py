"""Survives the end of memory: a fresh process goes on from the last checkpoint, one rung down the ladder. No torch."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from planner.prediction import Target, predict
from planner.run_config import RunConfig
from planner.run_file import write_run_file
from planner.run_record import Prediction, Recovery
from profiles.errors import InputError
from profiles.gpu_catalog import find_gpu
from profiles.main_memory import available_memory_bytes
from profiles.model_catalog import resolve_model
from trainer.checkpoints import CONFIG_FILE, last_checkpoint, step_of, way_on
from trainer.ladder import advice, changes, in_words, next_rung
from trainer.record import PREDICTION_FILE, append_recovery
from trainer.training_process import Ending

MAX_RESTARTS = 10
"""As many rungs as the ladder has below a micro-batch of 64 rows without checkpointing."""

Train = Callable[[RunConfig, Path, bool], Ending]
"""Runs a process that trains a configuration, kept in a run file, from the start or (True) from its checkpoint."""


def survive(config: RunConfig, run_file: Path, *, resume: bool, max_restarts: int, train: Train) -> int:
    """Train to the end with at most `max_restarts` fresh starts after memory ended; the exit code.

    A restart keeps the effective batch, the learning rate and the order of the data. What changed is told on stderr,
    kept in the record, and written as the run file of the run folder.
    """
    restarts = 0
    while True:
        ending = train(config, run_file, resume)
        if ending.out_of_memory is None:
            return _last_word(ending, config, run_file)
        rung = next_rung(config, ending.out_of_memory)
        if rung is None or restarts == max_restarts:
            left = way_on(last_checkpoint(Path(config.output_dir)), run_file)
            sys.stderr.write(f"\nhint: {advice(config, ending.out_of_memory)}; {left}\n")
            return ending.exit_code or 1
        restarts += 1
        config, run_file, resume = _go_down(config, rung, ending, restarts)


def _go_down(config: RunConfig, rung: RunConfig, ending: Ending, restarts: int) -> tuple[RunConfig, Path, bool]:
    """Write and tell the change from `config` to `rung`; what the next process is started with."""
    assert ending.out_of_memory is not None
    output_dir = Path(config.output_dir)
    checkpoint = last_checkpoint(output_dir)
    changed = changes(config, rung)
    recovery = Recovery(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        moment=ending.out_of_memory,
        step=ending.step,
        resumed_from=step_of(checkpoint) if checkpoint else 0,
        changes=changed,
    )
    append_recovery(recovery, output_dir)
    _predict_anew(rung, output_dir / PREDICTION_FILE)
    run_file = output_dir / CONFIG_FILE
    write_run_file(rung, run_file, ["The run in this folder, as it goes on after memory ended."])
    start = f"from {checkpoint}" if checkpoint else "from the start"
    sys.stderr.write(f"restart {restarts}, {start}, with {in_words(changed)}\n")
    return rung, run_file, checkpoint is not None


def _predict_anew(config: RunConfig, path: Path) -> None:
    """Replace the prediction at `path` by that of `config`; without one before, or where there is none now, by none."""
    if not path.exists():
        return
    path.unlink()
    try:
        gpu = find_gpu(config.gpu) if config.gpu is not None else None
        free = available_memory_bytes() if gpu is None else None
        prediction = predict(config, Target(resolve_model(config.model).profile, gpu, free))
    except InputError:
        return
    path.write_text(Prediction.model_validate(prediction.figures).model_dump_json(), encoding="utf-8")


def _last_word(ending: Ending, config: RunConfig, run_file: Path) -> int:
    """The exit code of a process that memory did not end; one that could not tell anything is told of here."""
    if ending.exit_code is not None:
        return ending.exit_code
    sys.stderr.write(
        "error: the training process ended without a result; if nothing above says why, the system killed it, "
        f"most often for lack of memory\n\nhint: {way_on(last_checkpoint(Path(config.output_dir)), run_file)}\n"
    )
    return 1
