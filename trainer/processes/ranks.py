"""Which of the processes that share a run this one is, as the launcher says. Needs no torch."""

import os

from planner.config.run_config import RunConfig
from profiles.errors import ConfigError


def rank() -> int:
    """Number of this process among those of the run; 0 writes and speaks for all."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Number of this process on its machine, which is that of its card."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def check_world_size(config: RunConfig) -> None:
    """Refuse a launcher that started another number of processes than the run file says. Raises ConfigError."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != config.world_size:
        raise ConfigError(
            f"the run file is for {config.num_nodes} x {config.num_gpus} processes, but {started} were started",
            hint="start it with `fitune launch`, which starts as many as the run file says",
        )
