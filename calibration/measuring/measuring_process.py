"""The process that measures point after point, as the one that asks sees it. Needs no torch."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Timer
from typing import Self

from calibration.measuring.measurement import Attempt, Point
from trainer.supervisor.training_process import training_command

MEASURER = "calibration.measuring.measure_point"


class MeasuringProcess:
    """Answers for points. Importing torch takes seconds, so one process measures many, until one of them breaks it.

    A point that takes longer than `limit_seconds`, or kills the process, is an attempt that failed; the next point gets
    a new process. So does it where something of a point stayed behind.
    """

    def __init__(self, limit_seconds: float) -> None:
        self._limit_seconds = limit_seconds
        self._process: subprocess.Popen[str] | None = None
        self._words = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed in `close`

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._words.close()

    def attempt(self, point: Point) -> Attempt:
        """What came of `point`."""
        process = self._process or self._start(point)
        assert process.stdin is not None
        assert process.stdout is not None
        timer = Timer(self._limit_seconds, process.kill)
        # Ctrl-C may come before `try`: a timer that nobody cancels must not keep this process alive.
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(point.model_dump_json() + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            return self._dead()
        attempt = Attempt.model_validate_json(line)
        if attempt.left_bytes or _spoils(point, attempt):
            self.stop()
        return attempt

    def stop(self) -> None:
        """End the process at once."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _start(self, point: Point) -> subprocess.Popen[str]:
        """A process with the variables of a launch; in a group of its own, so that Ctrl-C is for this one alone."""
        # The tensors of a CPU's points are too small to share among threads.
        threads = {} if point.config.gpu else {"OMP_NUM_THREADS": "1"}
        env = {**os.environ, **training_command(point.config, Path()).env, **threads}
        self._words.seek(0)
        self._words.truncate()
        self._process = subprocess.Popen(
            [sys.executable, "-m", MEASURER, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            encoding="utf-8",
            env=env,
            process_group=0,
        )
        return self._process

    def _dead(self) -> Attempt:
        """Why there was no answer: its last words, or the signal that ended it."""
        process = self._process
        assert process is not None
        code = process.wait()
        self.stop()
        self._words.seek(0)
        last = (self._words.read().strip().splitlines() or ["it said nothing"])[-1]
        killed = f"was ended by signal {-code}, at the latest after {self._limit_seconds:.0f} s"
        why = killed if code < 0 else f"ended with exit code {code}"
        return Attempt(outcome="failed", message=f"the process {why}: {last}")


def _spoils(point: Point, attempt: Attempt) -> bool:
    """Whether a card is not left as it was, though torch holds nothing there any more.

    After an error of CUDA every later call fails. Pages that a paged optimizer took are never given back (bitsandbytes
    0.50 `cget_managed_ptr`), which only matters where all weights learn.
    """
    if point.config.gpu is None:
        return False
    pages = point.config.optim.startswith("paged_") and point.config.method == "full"
    return pages or attempt.outcome == "failed"
