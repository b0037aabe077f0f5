"""Ctrl-C and its relatives: the first one lets a step end, the second one does not. Needs no torch.

SIGUSR1 is what schedulers send before the time is over. They send signals to all processes of a run at once, each of
which passes them on; what comes again in a moment is the same one.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from trainer.processes.ranks import rank

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

MOMENT_SECONDS = 1.0
"""A signal takes far less through three processes, and nobody presses Ctrl-C again so soon and means it."""

Handler = Callable[[int, FrameType | None], None]


class Interrupted(KeyboardInterrupt):
    """A signal came when there was no step to finish, or it came twice. `exit_code` is the shell's for that signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


@contextmanager
def handling(handler: Handler) -> Iterator[None]:
    """Give the signals to `handler` inside the block; one that is ignored, as under nohup, stays ignored.

    SIGUSR1 is heard in any case: the launcher has it ignored by what starts the trainer.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = [number for number in SIGNALS if before[number] is not signal.SIG_IGN or number == signal.SIGUSR1]
    for number in heard:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


class Interruption:
    """Remembers a signal that comes while `in_step` is true, and raises Interrupted otherwise.

    `signal_number` is the signal that came, None before it.
    """

    def __init__(self) -> None:
        self.in_step = False
        self.signal_number: int | None = None
        self._last: tuple[int, float] | None = None

    def receive(self, number: int, _: FrameType | None) -> None:
        """Handle one signal."""
        now = time.monotonic()
        if self._last is not None and self._last[0] == number and now - self._last[1] < MOMENT_SECONDS:
            return
        self._last = (number, now)
        if number == signal.SIGUSR1 and self.signal_number is not None:
            return
        if not self.in_step or self.signal_number is not None:
            raise Interrupted(number)
        self.signal_number = number
        if rank() == 0:
            name = signal.Signals(number).name
            sys.stderr.write(f"\n{name}: finishing this step, then writing a checkpoint; once more stops at once\n")
