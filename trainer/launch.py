"""Checks a run and starts the processes that train it; the exit code is that of the training. Needs no torch.

`python -m trainer.launch RUN_FILE [--resume] [--auto-resume] [--dry-run] [--max-restarts N] [--prediction FILE]`, and
of several machines `[--node-rank N] [--master-addr HOST] [--master-port PORT]`
"""

import argparse
import importlib.util
import itertools
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from planner.config.run_config import DTYPE_BYTES, RunConfig
from planner.config.run_file import read_run_file
from planner.units import format_bytes
from profiles.errors import ConfigError, DataError, EnvironmentFault, FituneError
from trainer.model.model_name import weights_name
from trainer.processes.layout import check_layout
from trainer.run_folder.checkpoints import FINAL, checkpoint_to_resume, holds_a_run, last_checkpoint
from trainer.run_folder.record import PREDICTION_FILE, RECOVERIES_FILE, read_recoveries
from trainer.supervisor.meeting import Meeting, find_meeting
from trainer.supervisor.recover import MAX_RESTARTS, Train, survive
from trainer.supervisor.training_process import Ending, run_training, training_command

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors")
# Checkpoints of an adapter with its optimizer's states stay below this share of the base model's 16-bit weights.
ADAPTER_SHARE = 0.05


def launch(
    config: RunConfig,
    run_file: Path,
    *,
    resume: bool = False,
    dry_run: bool = False,
    max_restarts: int = MAX_RESTARTS,
    prediction: Path | None = None,
    meeting: Meeting | None = None,
) -> int:
    """Train what `config`, read from `run_file`, says; the trainer's exit code.

    Where memory ends, or a process of several is lost, the run goes on, at most `max_restarts` times. `meeting` is
    where several machines meet; each of them launches.

    `prediction` is a file in the form of `planner.records.run_record.Prediction`; its figures are shown beside the
    measured.
    A dry run checks, prints the command to stdout and changes nothing; it may leave the data open, as a plan may.
    Raises InputError or EnvironmentFault.
    """
    if not (dry_run and config.data is None):
        check(config, resume=resume)
    if dry_run:
        if config.data is None:
            sys.stderr.write(
                "note: the run file has no data section yet; add `data: {path: FILE}` before you launch it\n"
            )
        sys.stdout.write(f"{training_command(config, run_file, resume=resume, meeting=meeting)}\n")
        return 0
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    leads = meeting is None or meeting.node_rank == 0
    if leads:
        _leave_what_is_expected(output_dir, resume, prediction)
    # Machines that come again later find by it where the others meet now.
    restarts_before = len(read_recoveries(output_dir)) if resume else 0
    trained = _trained_at(meeting, output_dir, restarts_before)
    return survive(config, run_file, resume=resume, max_restarts=max_restarts, train=trained, leads=leads)


def _leave_what_is_expected(output_dir: Path, resume: bool, prediction: Path | None) -> None:
    """Put the prediction where the trainer finds it; what is left of another run must not be taken for this one's."""
    if prediction is not None:
        shutil.copyfile(prediction, output_dir / PREDICTION_FILE)
    elif not resume:
        (output_dir / PREDICTION_FILE).unlink(missing_ok=True)
    if not resume:
        (output_dir / RECOVERIES_FILE).unlink(missing_ok=True)


def _trained_at(meeting: Meeting | None, output_dir: Path, restarts_before: int) -> Train:
    """What trains at this machine's place among several; they tell each other in the run folder how it went."""
    starts = itertools.count(restarts_before)

    def train(config: RunConfig, run_file: Path, resume: bool) -> Ending:
        if meeting is None:
            return run_training(training_command(config, run_file, resume=resume))
        restarts = next(starts)
        status = output_dir / ".status" / str(restarts) / str(meeting.node_rank)
        status.parent.mkdir(parents=True, exist_ok=True)
        status.unlink(missing_ok=True)
        return run_training(training_command(config, run_file, resume=resume, meeting=meeting.again(restarts)), status)

    return train


def check(config: RunConfig, *, resume: bool) -> None:
    """Refuse a run that cannot begin here. Raises InputError or EnvironmentFault."""
    output_dir = Path(config.output_dir)
    check_layout(config)
    if config.data is None:
        raise ConfigError("the run file has no data section", hint="add `data: {path: FILE}`")
    if not Path(config.data.path).exists():
        raise DataError(f"data.path is {config.data.path}, but there is no such file")
    if resume:
        checkpoint_to_resume(config)
    elif holds_a_run(output_dir):
        raise ConfigError(
            f"output_dir {output_dir} holds another run",
            hint="continue that run with --resume, or choose another output_dir",
        )
    weights_name(config.model)
    missing = [
        name for name in PACKAGES + _quantizer(config) + _engine(config) if importlib.util.find_spec(name) is None
    ]
    if missing == ["deepspeed"]:
        raise EnvironmentFault("the zero strategies need deepspeed", hint="pip install deepspeed, or use strategy fsdp")
    if missing:
        raise EnvironmentFault(f"training needs {', '.join(missing)}", hint="pip install 'fitune[train]'")
    for name in config.report_to:
        if importlib.util.find_spec(name) is None:
            raise EnvironmentFault(
                f"report_to names {name}, which is not installed",
                hint=f"`pip install {name}`, or leave it out",
            )
    _check_disk(config)


def is_done(config: RunConfig) -> bool:
    """Whether the run folder has the result of a run."""
    return (Path(config.output_dir) / FINAL).is_dir()


def _quantizer(config: RunConfig) -> tuple[str, ...]:
    """The package that holds quantized weights or 8-bit optimizer states, if the run has them."""
    return ("bitsandbytes",) if config.quantization is not None or "8bit" in config.optim else ()


def _engine(config: RunConfig) -> tuple[str, ...]:
    """The package of the engine by which cards share a run, where torch is not enough."""
    return ("deepspeed",) if config.parallel is not None and config.parallel.strategy.startswith("zero") else ()


def _check_disk(config: RunConfig) -> None:
    """Refuse a run whose checkpoints clearly do not fit on the disk, where the model's size is known."""
    weights = sum(file.stat().st_size for file in Path(config.model).glob("*.safetensors"))
    if config.method == "full":
        # Two optimizer states of the weights' own size, and the weights; files hold 16-bit weights as a rule.
        checkpoint = weights // 2 * DTYPE_BYTES[config.dtype] * 3
    else:
        checkpoint = round(weights * ADAPTER_SHARE)
    # While a checkpoint is written, the oldest one is still there.
    needed = checkpoint * (config.save_total_limit + 1)
    folder = next(
        place for place in (Path(config.output_dir), *Path(config.output_dir).absolute().parents) if place.exists()
    )
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EnvironmentFault(
            f"the checkpoints in {config.output_dir} need {format_bytes(needed)}, but {format_bytes(free)} are free",
            hint="free some space, choose another output_dir, or lower save_total_limit",
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Launch from the command line; errors are told in one sentence."""
    parser = argparse.ArgumentParser(prog="python -m trainer.launch", description="Launch what a run file says.")
    parser.add_argument("run_file", type=Path)
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in output_dir")
    parser.add_argument("--auto-resume", action="store_true", help="the same where there is one, else start")
    parser.add_argument("--dry-run", action="store_true", help="check, print the command, change nothing")
    parser.add_argument("--max-restarts", type=int, default=MAX_RESTARTS, help="restarts after memory ended")
    parser.add_argument("--prediction", type=Path, help="JSON file with the predicted figures")
    parser.add_argument("--node-rank", type=int, help="number of this machine, from 0")
    parser.add_argument("--master-addr", help="address of machine 0")
    parser.add_argument("--master-port", type=int, help="port at which the machines meet")
    arguments = parser.parse_args(argv)
    try:
        config = read_run_file(arguments.run_file)
        resume = arguments.resume
        if arguments.auto_resume:
            if is_done(config):
                sys.stderr.write(f"done before: {config.output_dir}/{FINAL}\n")
                return 0
            resume = last_checkpoint(Path(config.output_dir)) is not None
        return launch(
            config,
            arguments.run_file,
            resume=resume,
            meeting=find_meeting(config, arguments.node_rank, arguments.master_addr, arguments.master_port),
            dry_run=arguments.dry_run,
            max_restarts=arguments.max_restarts,
            prediction=arguments.prediction,
        )
    except FituneError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"\nhint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"error: the run folder cannot be written: {error}\n")
        return 1
    except KeyboardInterrupt:
        # Between two processes; while one trains, the signal is for it.
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
