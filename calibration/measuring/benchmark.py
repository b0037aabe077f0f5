"""A benchmark on the card of this machine: points are measured into a file, and what came of them is told as ratios.

What was measured before an interruption is not measured again.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from calibration.measuring.command import ending, own_gpu
from calibration.measuring.grid import Planned
from calibration.measuring.loop import Order, measure_all
from calibration.measuring.measurement import Measurement, read_measurements
from planner.report.progress import busy
from profiles.gpu import GpuProfile

Asked = TypeVar("Asked")
Found = TypeVar("Found")


def benchmark(
    argv: Sequence[str] | None,
    name: str,
    about: str,
    *,
    ask: Callable[[GpuProfile | None], Sequence[Asked]],
    points_of: Callable[[Asked], Sequence[Planned]],
    find: Callable[[Sequence[Asked], Sequence[Measurement]], Sequence[Found]],
    tell: Callable[..., None],
) -> int:
    """Measure the points of all that is asked on this machine, and tell what is found in them.

    Returns 0, 1 where nothing is found, or the code of an error.
    """
    parser = argparse.ArgumentParser(prog=f"python -m calibration.{name}", description=about)
    parser.add_argument("--minutes", type=float, default=4.0, help="begin no run that would end later")
    parser.add_argument("--output", type=Path, default=Path(f"{name}.jsonl"), help="records; what is in it is kept")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)

    def run() -> int:
        gpu = own_gpu()
        with busy("planning"):
            asked = ask(gpu)
        points = [point for one in asked for point in points_of(one)]
        measure_all(points, gpu, Order(arguments.minutes, arguments.output, traces=False))
        found = find(asked, read_measurements(arguments.output))
        tell(found, as_json=arguments.json)
        return 0 if found else 1

    return ending(run, as_json=arguments.json)
