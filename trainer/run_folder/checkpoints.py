"""The run folder: what is in it, which checkpoint is whole, and whether a run can go on from it. Needs no torch."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planner.config.run_config import Knobs, RunConfig
from planner.config.run_file import read_run_file
from profiles.errors import ConfigError
from profiles.peft_method import find_method
from trainer.run_folder.seal import SEAL_FILE, damage, is_sealed

FINAL = "final"
CONFIG_FILE = "run.yaml"

STATE_FILE = "trainer_state.json"
"""Transformers' account of the run so far, in each checkpoint."""

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
    partial = [folder for folder in _checkpoints(output_dir) if not is_sealed(folder)]
    for folder in partial:
        _delete(folder)
    return partial


def set_damaged_checkpoints_aside(output_dir: Path) -> list[str]:
    """Rename the checkpoints that were whole once and are not any more; a sentence about each, for the user."""
    remarks = []
    for folder in _checkpoints(output_dir):
        if is_sealed(folder) and (what := damage(folder)):
            aside = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            remarks.append(f"{folder} is damaged, {what}; it is kept as {aside.name} and not used")
    return remarks


def discard_old_checkpoints(output_dir: Path, keep: int, best: Path | None) -> None:
    """Delete all checkpoints but the newest `keep` whole ones and the `best`, once the newest is whole."""
    whole = [folder for folder in _checkpoints(output_dir) if _is_whole(folder)]
    others = [folder for folder in whole if best is None or folder.name != best.name]
    # The best one counts; the newest one always stays, for the way on.
    newest = max(1, keep - (len(whole) - len(others)))
    for folder in others[:-newest]:
        _delete(folder)


def checkpoint_to_resume(config: RunConfig) -> Path:
    """The checkpoint from which `config` goes on.

    Raises ConfigError if there is none, if the run in the folder is another one, or if its method cannot go on.
    """
    output_dir = Path(config.output_dir)
    if config.peft is not None and not find_method(config.peft.type).resumes:
        raise ConfigError(
            f"{config.peft.type} cannot go on from a checkpoint: PEFT keeps too little of it there",
            hint="start again without --resume, in another output_dir",
        )
    checkpoint = last_checkpoint(output_dir)
    if checkpoint is None:
        raise ConfigError(f"there is no checkpoint in {output_dir} to continue from", hint="launch without --resume")
    first = read_run_file(output_dir / CONFIG_FILE)
    for knob in FIXED_KNOBS:
        before, now = getattr(first, knob), getattr(config, knob)
        if before != now:
            changed, before, now = _first_change(knob, before, now)
            raise ConfigError(
                f"{changed} is {now}, but the run in {output_dir} began with {before}",
                hint=f"set it back ({output_dir / CONFIG_FILE} has it all){_making_up(knob)}, or start a new run in "
                "another output_dir",
            )
    _check_shares(first, config)
    return checkpoint


def _first_change(knob: str, before: object, now: object) -> tuple[str, object, object]:
    """Which knob of two unequal values differs, and how; of a section the first that does."""
    if not (isinstance(before, Knobs) and isinstance(now, Knobs)):
        return knob, before, now
    old, new = before.model_dump(), now.model_dump()
    key = next(key for key in old | new if old.get(key) != new.get(key))
    return f"{knob}.{key}", old.get(key), new.get(key)


def _making_up(knob: str) -> str:
    """What a run on other cards may turn for the same result."""
    fits = "; with other cards, gradient_accumulation_steps makes up for it"
    return fits if knob == "effective_batch_size" else ""


def _check_shares(first: RunConfig, config: RunConfig) -> None:
    """Refuse to read the shares of one engine with another, or DeepSpeed's with another number of processes."""
    before, now = _engine(first), _engine(config)
    if before != now:
        raise ConfigError(
            f"the checkpoints in {config.output_dir} are those of {before}, but the run is to go on with {now}",
            hint="go on with the same parallel section, or start a new run in another output_dir",
        )
    if before.startswith("zero") and first.world_size != config.world_size:
        raise ConfigError(
            f"{before} wrote its checkpoints with {first.world_size} processes, and cannot go on with "
            f"{config.world_size}",
            hint="set num_gpus and num_nodes back; strategies ddp and fsdp go on with any number",
        )


def _engine(config: RunConfig) -> str:
    """Who writes the checkpoints: one process and DDP write the same."""
    return "ddp" if config.parallel is None else config.parallel.strategy


def way_on(checkpoint: Path | None, run_file: Path) -> str:
    """What is kept of a run that ended too soon, and the command that continues from it."""
    if checkpoint is None:
        return f"no checkpoint was written yet; start again with `fitune launch {run_file}`"
    return f"{checkpoint} is whole; continue with `fitune launch {run_file} --resume`"


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that were done when `checkpoint` was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def is_last_step(checkpoint: Path, config: RunConfig) -> bool:
    """Whether nothing is left to train after `checkpoint`: it is of the last step, or the run stopped early there."""
    state = read_state(checkpoint)
    patience = config.early_stopping_patience
    stopped_early = patience is not None and evaluations_since_best(state["log_history"]) >= patience
    return stopped_early or bool(state["global_step"] >= (config.max_steps or state["max_steps"]))


def best_checkpoint(checkpoint: Path) -> Path:
    """The checkpoint with the lowest evaluation loss that `checkpoint` knows of, itself if it knows of none."""
    best = read_state(checkpoint)["best_model_checkpoint"]
    return checkpoint.with_name(Path(best).name) if best else checkpoint


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Transformers' account of the run up to `checkpoint`."""
    state: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    return state


def evaluations_since_best(log_history: Sequence[Mapping[str, float]]) -> int:
    """How many evaluations followed the one with the lowest loss; 0 if the last one has it, or if there was none."""
    losses = [entry["eval_loss"] for entry in log_history if "eval_loss" in entry]
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def _checkpoints(output_dir: Path) -> list[Path]:
    """Folders of checkpoints by step, whole or not."""
    steps = {
        folder: int(match[1])
        for folder in output_dir.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", folder.name)) and folder.is_dir()
    }
    return sorted(steps, key=lambda folder: steps[folder])


def _is_whole(folder: Path) -> bool:
    return is_sealed(folder) and damage(folder) is None


def _delete(folder: Path) -> None:
    """Delete a checkpoint in an order in which half of it is never taken for a whole one."""
    (folder / SEAL_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder)
