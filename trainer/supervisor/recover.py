"""Survives the end of memory, or of one of several processes: fresh ones go on from the last checkpoint. No torch.

After the end of memory they take one rung down the ladder.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from planner.config.run_config import RunConfig
from planner.config.run_file import write_run_file
from planner.predict.prediction import Target, predict
from planner.records.run_record import Prediction, Recovery
from profiles.errors import InputError
from profiles.gpu_catalog import find_gpu
from profiles.main_memory import available_memory_bytes
from profiles.model_catalog import resolve_model
from trainer.run_folder.checkpoints import CONFIG_FILE, last_checkpoint, step_of, way_on
from trainer.run_folder.record import PREDICTION_FILE, append_recovery
from trainer.supervisor.ladder import advice, changes, in_words, next_rung
from trainer.supervisor.training_process import Ending

MAX_RESTARTS = 10
"""As many rungs as the ladder has below a micro-batch of 64 rows without checkpointing."""

Train = Callable[[RunConfig, Path, bool], Ending]
"""Runs a process that trains a configuration, kept in a run file, from the start or (True) from its checkpoint."""


def survive(
    config: RunConfig, run_file: Path, *, resume: bool, max_restarts: int, train: Train, leads: bool = True
) -> int:
    """Train to the end, with fresh starts after memory ended or one of several processes was lost; the exit code.

    There are at most `max_restarts`. A restart keeps the effective batch, the learning rate and the order of the data.
    What changed is told on stderr, kept in the record, and written as the run file of the run folder. Of several
    machines, one `leads` and does that; the others decide the same from what all have told.
    """
    restarts, lost_at = 0, None
    while True:
        ending = train(config, run_file, resume)
        checkpoint = last_checkpoint(Path(config.output_dir))
        if ending.out_of_memory is not None:
            after = next_rung(config, ending.out_of_memory)
        else:
            # Lost twice without a step forward: the third time would be no better.
            after = config if ending.lost and (lost_at is None or checkpoint != lost_at.checkpoint) else None
            lost_at = _Loss(checkpoint)
        if after is None or restarts == max_restarts:
            return _last_word(ending, config, run_file, checkpoint)
        restarts += 1
        resume = checkpoint is not None
        if leads:
            _go_on(config, after, ending, restarts)
        config, run_file = after, Path(config.output_dir) / CONFIG_FILE


@dataclass(frozen=True, slots=True)
class _Loss:
    """The loss of a process, when this was the newest checkpoint."""

    checkpoint: Path | None


def _go_on(before: RunConfig, after: RunConfig, ending: Ending, restarts: int) -> None:
    """Write and tell what the next processes are started with, and why."""
    output_dir = Path(before.output_dir)
    checkpoint = last_checkpoint(output_dir)
    changed = changes(before, after)
    recovery = Recovery(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        moment=ending.out_of_memory or "training",
        lost=ending.lost,
        step=ending.step,
        resumed_from=step_of(checkpoint) if checkpoint else 0,
        changes=changed,
    )
    append_recovery(recovery, output_dir)
    if changed:
        _predict_anew(after, output_dir / PREDICTION_FILE)
    run_file = output_dir / CONFIG_FILE
    went_on = f"The run in this folder, as it goes on after restart {restarts}"
    write_run_file(after, run_file, [f"{went_on}, with {in_words(changed)}." if changed else f"{went_on}."])
    start = f"from {checkpoint}" if checkpoint else "from the start"
    if ending.lost:
        sys.stderr.write(f"{ending.lost}, and the others of the run were ended; restart {restarts}, {start}\n")
    else:
        kept = f"the effective batch stays {after.effective_batch_size}, and the learning rate {after.learning_rate}"
        sys.stderr.write(f"restart {restarts}, {start}, with {in_words(changed)}; {kept} ({run_file})\n")


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


def _last_word(ending: Ending, config: RunConfig, run_file: Path, checkpoint: Path | None) -> int:
    """Tell what a process could not tell of its end; the exit code of the run."""
    left = way_on(checkpoint, run_file)
    if ending.out_of_memory is not None:
        sys.stderr.write(f"\nhint: {advice(config, ending.out_of_memory)}; {left}\n")
        return ending.exit_code or 1
    if ending.exit_code is not None:
        return ending.exit_code
    if ending.lost:
        what = f"{ending.lost}, and the others of the run were ended, again without a step forward"
    else:
        what = (
            "the training process ended without a result; if nothing above says why, the system killed it, "
            "most often for lack of memory"
        )
    sys.stderr.write(f"error: {what}\n\nhint: {left}\n")
    return 1
