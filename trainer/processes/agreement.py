"""What the processes that share a run agree on. With one process, all of it is free."""

from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from torch import distributed

from planner.config.run_config import RunConfig
from profiles.errors import EnvironmentFault
from trainer.processes.fsdp_on_cpu import allow_fsdp_on_cpu
from trainer.processes.ranks import rank

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others; the slowest thing they do apart is to read the weights from a disk."""


def join(config: RunConfig) -> None:
    """Meet the other processes of the run, before weights are loaded: with FSDP only some read them."""
    if config.parallel is None:
        return
    if config.gpu is None and config.parallel.strategy == "fsdp":
        allow_fsdp_on_cpu()
    PartialState(cpu=config.gpu is None, timeout=TIMEOUT)


def leave() -> None:
    """End the group of processes in order, when all have done the same."""
    if _several():
        distributed.destroy_process_group()


def wait_for_all() -> None:
    """Go on when every process is here."""
    if _several():
        distributed.barrier()


def largest(number: int, device: torch.device) -> int:
    """The largest `number` that a process has. All must ask at the same point of the run."""
    if not _several():
        return number
    numbers = torch.tensor(number, device=device)
    distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
    return int(numbers)


def check_shared(folder: Path, device: torch.device) -> None:
    """Refuse a run folder that each machine has for itself: checkpoints would be in pieces. Raises EnvironmentFault."""
    mark = folder / ".shared"
    if rank() == 0:
        mark.touch()
    wait_for_all()
    missing = largest(int(not mark.exists()), device)
    if rank() == 0:
        mark.unlink()
    if missing:
        raise EnvironmentFault(
            f"output_dir {folder} is not the same folder on all machines",
            hint="choose one on a disk that they share; checkpoints and the way on are there",
        )


def _several() -> bool:
    return bool(distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)
