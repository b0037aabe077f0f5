"""Measures training steps on the card of this machine, and keeps each beside its prediction.

`fitune calibrate` starts this as a process. It plans a grid, lets another process train point after point, and appends
a line of JSON for each as it ends: stopped at any moment, the file is whole, and the next start goes on from there.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from calibration.measuring.command import ending, own_gpu, parse_cap
from calibration.measuring.grid import Planned, capped_grid, cpu_grid, grid
from calibration.measuring.loop import Order, measure_all
from calibration.measuring.measurement import RECORDS
from calibration.measuring.report import print_grid, print_summary
from planner.report.progress import busy
from planner.units import format_bytes
from profiles.errors import InputError
from profiles.gpu import GpuProfile
from profiles.gpu_catalog import find_gpu

CHECKOUT = RECORDS.parent.with_name("pyproject.toml").exists()
"""Whether this is the project's own folder, and not that of an installed package."""


def points_for(gpu: GpuProfile | None, caps: Sequence[int]) -> list[Planned]:
    """The grid of a card (None: a CPU), or of parts of its memory. Raises InputError for a cap that has no meaning."""
    if gpu is None:
        if caps:
            raise InputError("--cap limits a card, but this machine has none", hint="leave it out")
        return cpu_grid()
    for cap in caps:
        if cap > gpu.memory_bytes:
            raise InputError(
                f"--cap is {format_bytes(cap)}, but the {gpu.name} has {format_bytes(gpu.memory_bytes)}",
                hint="name a smaller one",
            )
    return capped_grid(gpu, caps) if caps else grid(gpu)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or list what would be measured. Returns 0, or 1 where nothing that was tried could be measured."""
    arguments = _parser().parse_args(argv)
    return ending(lambda: _run(arguments), as_json=arguments.json)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.gpu and not arguments.list:
        raise InputError("--gpu is for --list only; what is measured is the card of this machine")
    gpu = find_gpu(arguments.gpu) if arguments.gpu else own_gpu()
    with busy("choosing what to measure"):
        points = points_for(gpu, [parse_cap(text) for text in arguments.cap])
    if arguments.list:
        print_grid(points, gpu, as_json=arguments.json)
        return 0
    output = arguments.output or (RECORDS if CHECKOUT else Path()) / f"{_file_name(gpu)}.jsonl"
    found = measure_all(points, gpu, Order(arguments.minutes, output, arguments.trace))
    print_summary(found, output, as_json=arguments.json)
    return 0 if not found or any(one.attempt.outcome != "failed" for one in found) else 1


def _file_name(gpu: GpuProfile | None) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()) if gpu else "cpu"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m calibration.measure", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no point that would end later")
    parser.add_argument("--cap", action="append", default=[], help="memory the process may take, such as 15GB")
    parser.add_argument("--output", type=Path, help="file of records; default: CARD.jsonl")
    parser.add_argument("--trace", action="store_true", help="predict each point by a trace as well")
    parser.add_argument("--list", action="store_true", help="print what would be measured")
    parser.add_argument("--gpu", help="card to list for")
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
