"""How the cards share a run, in the words of the engines: accelerate's configuration and DeepSpeed's. Needs no torch.

Each process takes the variables from its run file, so any launcher that starts `python -m trainer RUN_FILE` on each
card will do. The run folder has the same as `accelerate.yaml`, which `accelerate launch --config_file` reads, and for
DeepSpeed as `deepspeed.json`.
"""

import json
from pathlib import Path

import yaml

from planner.config.engine_files import ACCELERATE_FILE as ACCELERATE_FILE
from planner.config.engine_files import DEEPSPEED_FILE as DEEPSPEED_FILE
from planner.config.engine_files import accelerate_config as accelerate_config
from planner.config.engine_files import deepspeed_config as deepspeed_config
from planner.config.engine_files import fsdp_section
from planner.config.run_config import RunConfig
from profiles.errors import ConfigError


def engine_variables(config: RunConfig) -> dict[str, str]:
    """Environment variables by which accelerate knows the engine, as `accelerate launch` would set them."""
    knobs = config.parallel
    if knobs is None or knobs.strategy == "ddp":
        return {}
    if knobs.strategy != "fsdp":
        return {"ACCELERATE_USE_DEEPSPEED": "true"}
    words = {name.upper(): str(value).lower() for name, value in fsdp_section(config, knobs).items()}
    for name in ("FSDP_AUTO_WRAP_POLICY", "FSDP_STATE_DICT_TYPE"):
        words[name] = words[name].upper()
    return {"ACCELERATE_USE_FSDP": "true", **words}


def write_layout(config: RunConfig, folder: Path) -> None:
    """Write the files of the engine into the run folder; for one process there are none."""
    if config.parallel is None:
        return
    (folder / ACCELERATE_FILE).write_text(
        "# How the processes of this run share it. The run file decides; this is the same for `accelerate launch`.\n"
        + yaml.safe_dump(accelerate_config(config, folder), sort_keys=False),
        encoding="utf-8",
    )
    content = deepspeed_config(config)
    if content is not None:
        (folder / DEEPSPEED_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_layout(config: RunConfig) -> None:
    """Refuse a layout that can be planned but not started. Raises ConfigError."""
    knobs = config.parallel
    if knobs is None:
        return
    for name in ("tensor_parallel_size", "context_parallel_size"):
        if getattr(knobs, name) > 1:
            raise ConfigError(
                f"parallel.{name} is {getattr(knobs, name)}, which fitune plans but does not launch",
                hint="launch with fsdp alone, or take the plan to an engine that has it, such as torchtitan",
            )
    if config.gpu is None and knobs.strategy.startswith("zero"):
        raise ConfigError(
            f"parallel.strategy is {knobs.strategy}, but accelerate starts DeepSpeed on cards only",
            hint="on a CPU use fsdp or ddp",
        )
    if config.gpu is None and knobs.offload != "none":
        raise ConfigError(f"parallel.offload is {knobs.offload}, but on a CPU all is in host memory", hint="use none")
