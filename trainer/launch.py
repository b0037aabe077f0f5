"""Starts the process that trains, through `accelerate launch`, and returns its exit code. Needs no torch.

`python -m trainer.launch RUN_FILE [--resume] [--dry-run] [--prediction FILE]`
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from planner.run_config import DTYPE_BYTES, RunConfig
from planner.run_file import read_run_file
from planner.units import format_bytes
from profiles.errors import ConfigError, DataError, EnvironmentFault, FituneError
from trainer.checkpoints import checkpoint_to_resume, holds_a_run
from trainer.interruption import handling
from trainer.model_name import weights_name
from trainer.record import PREDICTION_FILE

STATUS_FILE = "FITUNE_STATUS_FILE"
"""Variable that names the file in which the trainer leaves its process number and exit code."""

ACCELERATE_CONFIG = Path(__file__).with_name("accelerate.yaml")
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors")
# Checkpoints of an adapter with its optimizer's states stay below this share of the base model's 16-bit weights.
ADAPTER_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Command:
    """A process to start: its arguments, and the variables that it gets on top of this process's own."""

    argv: tuple[str, ...]
    env: dict[str, str]

    def __str__(self) -> str:
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return " ".join([*variables, shlex.join(self.argv)])


def launch(
    config: RunConfig, run_file: Path, *, resume: bool = False, dry_run: bool = False, prediction: Path | None = None
) -> int:
    """Train what `config`, read from `run_file`, says; the trainer's exit code.

    `prediction` is a file in the form of `trainer.record.Prediction`; its figures are shown beside the measured ones.
    A dry run checks, prints the command to stdout and changes nothing; it may leave the data open, as a plan may.
    Raises InputError or EnvironmentFault.
    """
    if not (dry_run and config.data is None):
        check(config, resume=resume)
    command = training_command(config, run_file, resume=resume)
    if dry_run:
        if config.data is None:
            sys.stderr.write(
                "note: the run file has no data section yet; add `data: {path: FILE}` before you launch it\n"
            )
        sys.stdout.write(f"{command}\n")
        return 0
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    if prediction is not None:
        shutil.copyfile(prediction, output_dir / PREDICTION_FILE)
    elif not resume:
        (output_dir / PREDICTION_FILE).unlink(missing_ok=True)
    return _supervise(command)


def check(config: RunConfig, *, resume: bool) -> None:
    """Refuse a run that cannot begin here. Raises InputError or EnvironmentFault."""
    output_dir = Path(config.output_dir)
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
    missing = [name for name in PACKAGES + _quantizer(config) if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentFault(f"training needs {', '.join(missing)}", hint="pip install 'fitune[train]'")
    _check_disk(config)


def training_command(config: RunConfig, run_file: Path, *, resume: bool = False) -> Command:
    """What is started for this run, on one card or on the CPU."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0)))
    argv = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", str(ACCELERATE_CONFIG)]
    argv += ["--num_cpu_threads_per_process", threads]
    argv += ["--cpu"] if config.gpu is None else []
    argv += ["--module", "trainer", str(run_file)]
    argv += ["--resume"] if resume else []
    env = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if config.gpu is None:
        env["CUDA_VISIBLE_DEVICES"] = ""
    else:
        # One card of those that this process may use: TRL refuses to train where it sees several.
        env["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        # The second name is the newer one.
        for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
            env[name] = os.environ.get(name, "expandable_segments:True")
    return Command(tuple(argv), env)


def _supervise(command: Command) -> int:
    """Run `command`, pass signals on to the trainer below it, and return the trainer's own exit code."""
    killed_by: int | None = None
    with tempfile.TemporaryDirectory(prefix="fitune-") as folder:
        status = Path(folder) / "status"
        env = {**os.environ, **command.env, STATUS_FILE: str(status)}
        # In a group of its own, so that Ctrl-C reaches the trainer once, from here, and not accelerate's process.
        process = subprocess.Popen(command.argv, env=env, process_group=0)

        def forward(number: int, _: FrameType | None) -> None:
            nonlocal killed_by
            pid = _status(status).get("pid")
            # Whoever is to be told may have ended just now.
            with contextlib.suppress(ProcessLookupError):
                if pid is not None:
                    os.kill(pid, number)
                else:
                    killed_by = number
                    os.killpg(process.pid, signal.SIGKILL)

        with handling(forward):
            process.wait()
        exit_code = _status(status).get("exit_code")
    if exit_code is None and killed_by is not None:
        return 128 + killed_by
    if exit_code is None:
        sys.stderr.write(
            "error: the training process ended without a result; if nothing above says why, the system killed it, "
            "most often for lack of memory\n"
        )
        return 1
    return exit_code


def _status(path: Path) -> dict[str, int]:
    """What the trainer has left in the status file so far."""
    facts: dict[str, int] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            facts |= json.loads(line)
    return facts


def _quantizer(config: RunConfig) -> tuple[str, ...]:
    """The package that holds quantized weights or 8-bit optimizer states, if the run has them."""
    return ("bitsandbytes",) if config.quantization is not None or "8bit" in config.optim else ()


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
    parser.add_argument("--dry-run", action="store_true", help="check, print the command, change nothing")
    parser.add_argument("--prediction", type=Path, help="JSON file with the predicted figures")
    arguments = parser.parse_args(argv)
    try:
        return launch(
            read_run_file(arguments.run_file),
            arguments.run_file,
            resume=arguments.resume,
            dry_run=arguments.dry_run,
            prediction=arguments.prediction,
        )
    except FituneError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"\nhint: {error.hint}\n" if error.hint else ""))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
