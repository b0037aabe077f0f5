"""The run folder: what is in it, which checkpoint is whole, and whether a run can go on from it. Needs no torch."""

import json
import re
import shutil
from pathlib import Path

from planner.run_config import RunConfig
from planner.run_file import read_run_file
from profiles.errors import ConfigError

FINAL = "final"
CONFIG_FILE = "run.yaml"

# Transformers writes it last, so a checkpoint that has it is whole.
STATE_FILE = "trainer_state.json"

FIXED_KNOBS = (
    "model",
    "method",
    "quantization",
    "double_quant",
    "lora",
    "peft",
    "optim",
    "data",
    "max_length",
    "packing",
    "seed",
    "effective_batch_size",
)
"""What a resumed run shares with its first part: the shape of weights and states, and the order of the data."""


def holds_a_run(output_dir: Path) -> bool:
    """Whether `output_dir` has a checkpoint or the result of a run, which a new run would mix with its own."""
    return last_checkpoint(output_dir) is not None or (output_dir / FINAL).exists()


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest whole checkpoint; None if there is none."""
    whole = [folder for folder in _checkpoints(output_dir) if _is_whole(folder)]
    return whole[-1] if whole else None


def discard_partial_checkpoints(output_dir: Path) -> list[Path]:
    """Delete the checkpoints that were cut off while they were written, and return them."""
    partial = [folder for folder in _checkpoints(output_dir) if not _is_whole(folder)]
    for folder in partial:
        shutil.rmtree(folder)
    return partial


def checkpoint_to_resume(config: RunConfig) -> Path:
    """The checkpoint from which `config` goes on.

    Raises ConfigError if there is none, or if the run in the folder is another one.
    """
    output_dir = Path(config.output_dir)
    checkpoint = last_checkpoint(output_dir)
    if checkpoint is None:
        raise ConfigError(f"there is no checkpoint in {output_dir} to continue from", hint="launch without --resume")
    first = read_run_file(output_dir / CONFIG_FILE)
    for knob in FIXED_KNOBS:
        before, now = getattr(first, knob), getattr(config, knob)
        if before != now:
            raise ConfigError(
                f"{knob} is {now}, but the run in {output_dir} began with {before}",
                hint=f"set it back ({output_dir / CONFIG_FILE} has it all), or start a new run in another output_dir",
            )
    return checkpoint


def is_last_step(checkpoint: Path, config: RunConfig) -> bool:
    """Whether nothing is left to train after `checkpoint`."""
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    return bool(state["global_step"] >= (config.max_steps or state["max_steps"]))


def _checkpoints(output_dir: Path) -> list[Path]:
    """Folders of checkpoints by step, whole or not."""
    steps = {
        folder: int(match[1])
        for folder in output_dir.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", folder.name)) and folder.is_dir()
    }
    return sorted(steps, key=lambda folder: steps[folder])


def _is_whole(folder: Path) -> bool:
    try:
        json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
