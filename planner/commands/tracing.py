"""What the terminal shows while a step is traced."""

import sys
from contextlib import AbstractContextManager


def tracing(why: str | None) -> AbstractContextManager[None]:
    """A sign of life on stderr, below a word on why there is a trace that nobody asked for."""
    from planner.report.progress import busy

    if why:
        sys.stderr.write(f"note: {why}; tracing the step instead\n")
    return busy("tracing the step on fake tensors")
