"""Measures training steps on the card of this machine, and keeps each beside its prediction.

`fitune calibrate` starts this as a process. It plans a grid, lets another process train point after point, and appends
a line of JSON for each as it ends: stopped at any moment, the file is whole, and the next start goes on from there.
"""

import argparse
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from calibration.measuring.grid import SECONDS_BESIDE_STEPS, Planned, capped, capped_grid, cpu_grid, grid
from calibration.measuring.measurement import (
    Expected,
    Measurement,
    append_measurement,
    read_measurements,
    record_file,
    stored_run,
)
from calibration.measuring.measuring_process import MeasuringProcess
from calibration.measuring.report import line, print_grid, print_summary
from planner.predict.prediction import Target, predict_traced
from planner.predict.traced import check_tracer
from planner.records.run_record import CPU, Prediction
from planner.records.run_store import StoreError, remember, store_path
from planner.report.error import print_error
from planner.report.progress import busy, progress_bar
from planner.units import format_bytes
from profiles.detect import detect_gpu
from profiles.errors import EnvironmentFault, FituneError, InputError
from profiles.gpu import GIB, GpuProfile
from profiles.gpu_catalog import find_gpu

RECORDS = Path(__file__).with_name("records")
CHECKOUT = RECORDS.parent.with_name("pyproject.toml").exists()
"""Whether this is the project's own folder, and not that of an installed package."""

CAP = re.compile(r"(?P<gib>\d+(\.\d+)?)\s*gi?b?", re.IGNORECASE)
LIMIT_SECONDS = 150.0
"""A point that takes longer is given up; those of the grid are expected to take a sixth of that."""

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for on the command line."""

    minutes: float
    output: Path
    traces: bool


def parse_cap(text: str) -> int:
    """A size such as 15GB in bytes; as everywhere here, a GB is 2**30 bytes. Raises InputError."""
    size = CAP.fullmatch(text.strip())
    if size is None or not 1 <= float(size["gib"]) <= 1024:
        raise InputError(f"--cap is '{text}', but it must be a size from 1GB to 1024GB", hint="for example --cap 15GB")
    return int(float(size["gib"]) * GIB)


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


def measure_all(points: Sequence[Planned], gpu: GpuProfile | None, order: Order) -> list[Measurement]:
    """Measure `points` in their order until the time is up, and tell each on stderr.

    Those that the file has already are left out. Raises InputError or RunError for a file that cannot be written.
    """
    check_tracer("measuring")
    with record_file(order.output) as file:
        known = {one.point.id for one in read_measurements(order.output)}
        rest = [one for one in points if one.point.id not in known]
        if len(rest) < len(points):
            sys.stderr.write(f"{len(points) - len(rest)} of {len(points)} points are in {order.output} already\n")
        found: list[Measurement] = []
        try:
            for measurement in _measure(rest, gpu, order):
                append_measurement(measurement, file)
                found.append(measurement)
                teach(measurement, gpu)
                # The bar moves aside for what is written to the stream itself, not for another console.
                sys.stderr.write(line(measurement) + "\n")
        except KeyboardInterrupt:
            sys.stderr.write(
                f"stopped; {order.output} has what was measured, and the same command goes on from there\n"
            )
            raise
        if len(found) < len(rest):
            sys.stderr.write(f"{len(rest) - len(found)} points are left for another {order.minutes:g} minutes\n")
    return found


def _measure(points: Sequence[Planned], gpu: GpuProfile | None, order: Order) -> Iterator[Measurement]:
    """Those of `points` for which there is time."""
    deadline = time.monotonic() + 60 * order.minutes
    done, beside = 0, SECONDS_BESIDE_STEPS
    with MeasuringProcess(LIMIT_SECONDS) as process, progress_bar("measuring") as progress:
        for one in points:
            began = time.monotonic()
            if began + one.seconds + beside > deadline:
                # A shorter one may still fit.
                continue
            yield _measured(one, gpu, process, order.traces)
            done += 1
            beside += (max(0, time.monotonic() - began - one.seconds) - beside) / (done + 1)
            progress(max(1 - (deadline - time.monotonic()) / (60 * order.minutes), done / len(points)))


def teach(measurement: Measurement, gpu: GpuProfile | None) -> None:
    """Keep `measurement` in the store of runs, where later plans learn from it; a broken store stops nothing."""
    path, run = store_path(), stored_run(measurement, gpu.name if gpu else CPU)
    if path is None or run is None:
        return
    try:
        remember([run], path)
    except StoreError as error:
        sys.stderr.write(f"note: {error.message}\n")


def _measured(one: Planned, gpu: GpuProfile | None, process: MeasuringProcess, traces: bool) -> Measurement:
    attempt = process.attempt(one.point)
    trace, trace_error = _trace(one, gpu) if traces else (None, None)
    return Measurement(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        point=one.point,
        expected=Expected(
            closed_form=Prediction.model_validate(one.prediction.figures),
            verdict=one.prediction.verdict if gpu else None,
            trace=trace,
            trace_error=trace_error,
        ),
        attempt=attempt,
    )


def _trace(one: Planned, gpu: GpuProfile | None) -> tuple[Prediction | None, str | None]:
    """The prediction by a trace, or why there is none."""
    card = capped(gpu, one.point.cap_bytes) if gpu and one.point.cap_bytes else gpu
    try:
        target = Target(one.point.model, card, None if card else one.prediction.usable_bytes)
        return Prediction.model_validate(predict_traced(one.point.config, target).figures), None
    except FituneError as error:
        return None, error.message


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or list what would be measured. Returns 0, or 1 where nothing that was tried could be measured."""
    arguments = _parser().parse_args(argv)
    return ending(lambda: _run(arguments), as_json=arguments.json)


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


def own_gpu() -> GpuProfile | None:
    """The card of this machine, None without one."""
    try:
        return detect_gpu().profile
    except EnvironmentFault:
        return None


def _file_name(gpu: GpuProfile | None) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()) if gpu else "cpu"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


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
