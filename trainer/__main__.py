"""The process that trains: `python -m trainer RUN_FILE [--resume]`, started by `trainer.launch`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from planner.config.run_file import read_run_file
from planner.records.run_record import RunRecord
from planner.units import format_bytes
from profiles.errors import FituneError, InputError, OutOfMemory, ProcessLost
from trainer.loop.notices import hold_back_notices
from trainer.processes.layout import engine_variables
from trainer.processes.ranks import check_world_size, rank
from trainer.run_folder.record import PREDICTION_FILE, read_prediction
from trainer.supervisor.interruption import Interrupted, Interruption, handling
from trainer.supervisor.training_process import STATUS_FILE, report


def main(argv: Sequence[str] | None = None) -> int:
    """Train what a run file says; the exit code is 0 only if every step was done."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Train what a run file says.")
    parser.add_argument("run_file", type=Path)
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in output_dir")
    arguments = parser.parse_args(argv)
    try:
        exit_code = _train(arguments.run_file, arguments.resume)
    except OutOfMemory as error:
        # The launcher knows whether the run goes on all the same, and gives the hint if not.
        _tell(error, hint=STATUS_FILE not in os.environ)
        report(exit_code=error.exit_code, out_of_memory=error.moment, step=error.step)
        return error.exit_code
    except ProcessLost as error:
        if STATUS_FILE not in os.environ:
            _tell(error)
        # The launcher says it once for all.
        report(exit_code=error.exit_code, bereft=True, step=error.step)
        return error.exit_code
    report(exit_code=exit_code)
    return exit_code


def _train(run_file: Path, resume: bool) -> int:
    console = Console(stderr=True, quiet=rank() != 0)
    interruption = Interruption()
    try:
        with handling(interruption.receive):
            report(pid=os.getpid())
            config = read_run_file(run_file)
            check_world_size(config)
            os.environ.update(engine_variables(config))
            prediction = read_prediction(Path(config.output_dir) / PREDICTION_FILE)
            hold_back_notices()
            # The libraries take seconds to import; a mistake in the run file is told before.
            from trainer.loop.progress import choose_display
            from trainer.run import Job, run

            record = run(Job(config, run_file, prediction, resume), choose_display(console), interruption, console)
    except (OutOfMemory, ProcessLost):
        raise
    except FituneError as error:
        if rank() == 0 or not isinstance(error, InputError):
            _tell(error)
        return error.exit_code
    except Interrupted as stop:
        console.print("stopped before a step could be finished; checkpoints that were written before are whole")
        return stop.exit_code
    if rank() == 0:
        _show(record, console)
    if record.result.status == "interrupted" and interruption.signal_number is not None:
        done = f"stopped after step {record.result.steps} of {record.result.max_steps}; a checkpoint is written"
        console.print(f"{done}\n\nhint: continue with `fitune launch {run_file} --resume`", soft_wrap=True)
        return 128 + interruption.signal_number
    if record.result.steps < record.result.max_steps:
        console.print(f"stopped early, after step {record.result.steps}: the evaluation loss did not fall any more")
    console.print(f"done: {config.output_dir}/final", soft_wrap=True)
    return 0


def _show(record: RunRecord, console: Console) -> None:
    """Print predicted and measured, or that there is nothing to measure."""
    table = comparison(record)
    if table.row_count:
        Console().print(table)
    else:
        console.print(f"no step was left to do: {record.result.steps} of {record.result.max_steps} are done")


def comparison(record: RunRecord) -> Table:
    """Predicted and measured side by side."""
    predicted, measured = record.predicted, record.measured
    table = Table("", "predicted", "measured", "error")
    rows = (
        ("allocated memory", "allocated_bytes"),
        ("reserved memory", "reserved_bytes"),
        ("process memory", "process_bytes"),
    )
    for title, name in rows:
        expected, found = getattr(predicted, name, None), getattr(measured, name)
        if found is not None:
            shown = format_bytes(expected) if expected is not None else "-"
            table.add_row(title, shown, format_bytes(found), _error(expected, found))
    expected, found = getattr(predicted, "tokens_per_second", None), measured.tokens_per_second
    if found is not None:
        table.add_row("tokens/s", f"{expected:,.0f}" if expected else "-", f"{found:,.0f}", _error(expected, found))
    return table


def _error(expected: float | None, found: float) -> str:
    return f"{(expected - found) / found:+.1%}" if expected and found else "-"


def _tell(error: FituneError, *, hint: bool = True) -> None:
    """Print an error, from whichever process of the run it is."""
    console = Console(stderr=True)
    console.print(f"error: {error.message}", soft_wrap=True, highlight=False, markup=False)
    if error.hint and hint:
        console.print(f"\nhint: {error.hint}", soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(main())
