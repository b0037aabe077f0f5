"""What the commands that measure have in common: sizes on the command line, the card at hand, and how they end."""

import re
import signal
from collections.abc import Callable
from types import FrameType

from planner.report.error import print_error
from profiles.detect import detect_gpu
from profiles.errors import EnvironmentFault, FituneError, InputError
from profiles.gpu import GIB, GpuProfile

CAP = re.compile(r"(?P<gib>\d+(\.\d+)?)\s*gi?b?", re.IGNORECASE)
INTERRUPTED = 130


def parse_cap(text: str) -> int:
    """A size such as 15GB in bytes; as everywhere here, a GB is 2**30 bytes. Raises InputError."""
    size = CAP.fullmatch(text.strip())
    if size is None or not 1 <= float(size["gib"]) <= 1024:
        raise InputError(f"--cap is '{text}', but it must be a size from 1GB to 1024GB", hint="for example --cap 15GB")
    return int(float(size["gib"]) * GIB)


def own_gpu() -> GpuProfile | None:
    """The card of this machine, None without one."""
    try:
        return detect_gpu().profile
    except EnvironmentFault:
        return None


def ending(work: Callable[[], int], *, as_json: bool) -> int:
    """The exit code of `work`; errors are told, and a process that is told to end leaves nothing behind."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return work()
    except FituneError as error:
        print_error(error.message, error.hint, exit_code=error.exit_code, as_json=as_json)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
