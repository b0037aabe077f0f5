"""What the processes that share a batch agree on. With one process, all of it is free."""

import torch
from torch import distributed


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


def _several() -> bool:
    return bool(distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1)
