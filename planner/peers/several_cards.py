"""How a peer's run is shared among several cards of one machine: what an export adds, and what a file says of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from planner.config.engine_files import (
    ACCELERATE_FILE,
    DEEPSPEED_FILE,
    accelerate_config,
    deepspeed_config,
    layout_of_deepspeed,
)
from planner.config.run_config import RunConfig, Strategy
from planner.config.settings import with_knobs
from planner.peers.keys import Keys
from profiles.errors import ConfigError

DEEPSPEED: tuple[Strategy, ...] = ("zero1", "zero2", "zero3")
STRATEGIES: dict[str, tuple[Strategy, ...]] = {
    "axolotl": ("ddp", *DEEPSPEED),
    "llama-factory": ("ddp", *DEEPSPEED),
    "trl": ("ddp", "fsdp", *DEEPSPEED),
    "script": ("ddp",),
}
"""The layouts that are written for each target."""

WHY_NOT = {
    "axolotl": "Axolotl changes torch's FSDP2 in ways that nobody here has read",
    "llama-factory": "LLaMA-Factory leaves FSDP to accelerate, with dtypes that nobody here has read",
    "trl": "the files of accelerate that TRL takes say nothing of it",
    "unsloth": "Unsloth's command line trains on one card",
    "script": "the program saves as a single process does, and does not gather what is shared out",
}
"""Why a target has no other layouts."""


@dataclass(frozen=True, slots=True)
class SeveralCards:
    """Keys of the configuration, files beside it by name, and words around the command that starts one process."""

    keys: dict[str, Any] = field(default_factory=dict)
    companions: dict[str, str] = field(default_factory=dict)
    before: str = ""
    after: str = ""


def several_cards(config: RunConfig, target: str, folder: Path) -> SeveralCards:
    """What is added for the layout of `config`, nothing for one card. Raises ConfigError if it is not written."""
    knobs = config.parallel
    if knobs is None:
        return SeveralCards()
    _check(config, target)
    files: dict[str, str] = {}
    if (content := deepspeed_config(config)) is not None:
        files[DEEPSPEED_FILE] = json.dumps(content, indent=2) + "\n"
    if target in ("trl", "script"):
        files[ACCELERATE_FILE] = yaml.safe_dump(accelerate_config(config, folder), sort_keys=False)
    path = folder / ACCELERATE_FILE
    match target:
        case "trl":
            storage = {"bnb_4bit_quant_storage": config.quant_storage} if config.quant_storage else {}
            return SeveralCards(storage, files, after=f" --accelerate_config {path}")
        case "script":
            return SeveralCards({}, files, before=f"accelerate launch --config_file {path} ")
        case "axolotl":
            return SeveralCards(_named(files, folder), files, after=f" --num-processes {config.num_gpus}")
        case _:
            start = f"FORCE_TORCHRUN=1 NPROC_PER_NODE={config.num_gpus} "
            return SeveralCards(_named(files, folder), files, before=start)


def _named(files: dict[str, str], folder: Path) -> dict[str, Any]:
    """The key that names DeepSpeed's file, if there is one."""
    return {"deepspeed": str(folder / DEEPSPEED_FILE)} if files else {}


def with_layout(config: RunConfig, keys: Keys, unsaid: Mapping[str, Any], folder: Path) -> RunConfig:
    """`config` with what the file is silent about, and on several cards with the layout of its DeepSpeed file.

    Where that is not there or not described, its key stays among those that are not counted. Raises ConfigError.
    """
    given = keys("deepspeed") if keys.given("deepspeed") else None
    cards = unsaid.get("num_gpus", 1) * unsaid.get("num_nodes", 1)
    if given is None or cards == 1 or "parallel" in unsaid:
        return with_knobs(config, unsaid)
    try:
        layout = layout_of_deepspeed(_deepspeed_content(given, folder))
        found = with_knobs(config, {**unsaid, "parallel": layout})
    except ConfigError as error:
        keys.leave_out("deepspeed", error.message.removeprefix("--set: "))
        return with_knobs(config, unsaid)
    keys.take_in("deepspeed")
    return found


def _deepspeed_content(given: object, folder: Path) -> Mapping[str, Any]:
    """What stands in DeepSpeed's file, which is sought where the trainer starts, and beside the file that names it."""
    if isinstance(given, Mapping):
        return given
    path = next((path for path in (Path(str(given)), folder / str(given)) if path.is_file()), None)
    if path is None:
        raise ConfigError(f"the layout on several cards, of which {given} would tell; there is no such file here")
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the layout on several cards, but {path} cannot be read: {error}") from error
    return content if isinstance(content, Mapping) else {}


def _check(config: RunConfig, target: str) -> None:
    knobs = config.parallel
    assert knobs is not None
    if config.num_nodes > 1:
        raise ConfigError(
            f"the run is for {config.num_nodes} machines, and exports are for one",
            hint="`fitune launch --print slurm` and others write job files for several",
        )
    known = STRATEGIES.get(target, ())
    if knobs.strategy not in known or knobs.tensor_parallel_size * knobs.context_parallel_size > 1:
        split = knobs.tensor_parallel_size * knobs.context_parallel_size > 1
        what = "parallel splits products or rows" if split else f"parallel.strategy is {knobs.strategy}"
        raise ConfigError(
            f"{what}, which is not written for {target}: {WHY_NOT[target]}",
            hint=f"use {' or '.join(known)}, without splitting products or rows" if known else "plan for one card",
        )
