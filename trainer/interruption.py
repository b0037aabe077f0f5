"""Ctrl-C and SIGTERM: the first one lets a step end, the second one does not. Needs no torch."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal came when there was no step to finish, or it came twice. `exit_code` is the shell's for that signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


class Interruption:
    """Remembers a signal that comes while `in_step` is true, and raises Interrupted otherwise.

    `signal_number` is the signal that came, None before it.
    """

    def __init__(self) -> None:
        self.in_step = False
        self.signal_number: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block, and put the old handlers back after it."""
        before = {number: signal.signal(number, self._received) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _received(self, number: int, _: FrameType | None) -> None:
        if not self.in_step or self.signal_number is not None:
            raise Interrupted(number)
        self.signal_number = number
        name = signal.Signals(number).name
        sys.stderr.write(f"\n{name}: finishing this step, then writing a checkpoint; once more stops at once\n")
