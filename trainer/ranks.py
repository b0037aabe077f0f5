"""Which of the processes that share a batch this one is, as the launcher says. Needs no torch."""

import os


def rank() -> int:
    """Number of this process among those of the run; 0 writes and speaks for all."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Number of this process on its machine, which is that of its card."""
    return int(os.environ.get("LOCAL_RANK", "0"))
