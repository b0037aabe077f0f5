"""One process at a time in a run folder. Needs no torch."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from planner.records.run_record import LOCK_FILE as LOCK_FILE
from profiles.errors import EnvironmentFault


@contextmanager
def holding(output_dir: Path) -> Iterator[None]:
    """Keep `output_dir` for this process; the system gives it back however the process ends.

    Raises EnvironmentFault if another process trains there: the launcher may have been killed, but not its trainer.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    with (output_dir / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EnvironmentFault(
                f"another process is training in {output_dir}",
                hint=f"wait until it is done, or find it with `fuser {output_dir / LOCK_FILE}` and end it",
            ) from error
        yield
