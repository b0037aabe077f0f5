"""What an export for several cards of one machine adds: keys, the engine's files, and how the processes are started."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from planner.config.engine_files import ACCELERATE_FILE, DEEPSPEED_FILE, accelerate_config, deepspeed_config
from planner.config.run_config import RunConfig, Strategy
from profiles.errors import ConfigError

STRATEGIES: dict[str, tuple[Strategy, ...]] = {
    "axolotl": ("ddp", "zero1", "zero2", "zero3"),
    "llama-factory": ("ddp",),
    "trl": ("ddp", "fsdp", "zero1", "zero2", "zero3"),
    "script": ("ddp",),
}
"""The layouts that are written for each target; those of the others are not known well enough."""


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
            keys = {"deepspeed": str(folder / DEEPSPEED_FILE)} if files else {}
            return SeveralCards(keys, files, after=f" --num-processes {config.num_gpus}")
        case _:
            return SeveralCards(before=f"FORCE_TORCHRUN=1 NPROC_PER_NODE={config.num_gpus} ")


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
        raise ConfigError(
            f"parallel.strategy is {knobs.strategy}, which is not written for {target}",
            hint=f"use {' or '.join(known)}, one process a card" if known else "export a run for one card",
        )
