"""Storages that change their size, which no operation of torch shows: so FSDP gives back what it has gathered."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod

import torch

Tell = Callable[[torch.UntypedStorage], None]

_resize = torch.UntypedStorage.resize_
"""Torch's own."""


@contextmanager
def resizes_told(tell: Tell) -> Iterator[None]:
    """Inside the block, `tell` hears of each storage that was resized."""
    torch.UntypedStorage.resize_ = partialmethod(_resize_and_tell, tell)
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = _resize


def _resize_and_tell(storage: torch.UntypedStorage, tell: Tell, size: int) -> torch.UntypedStorage:
    result: torch.UntypedStorage = _resize(storage, size)
    tell(storage)
    return result
