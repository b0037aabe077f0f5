"""Point after point: each is trained in another process, and kept beside its prediction as it ends."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from calibration.measuring.grid import SECONDS_BESIDE_STEPS, Planned, capped
from calibration.measuring.measurement import (
    Expected,
    Measurement,
    append_measurement,
    read_measurements,
    record_file,
    stored_run,
)
from calibration.measuring.measuring_process import MeasuringProcess
from calibration.measuring.report import line
from planner.predict.prediction import Target, predict_traced
from planner.predict.traced import check_tracer
from planner.records.run_record import CPU, Prediction
from planner.records.run_store import StoreError, remember, store_path
from planner.report.progress import progress_bar
from profiles.errors import FituneError
from profiles.gpu import GpuProfile

LIMIT_SECONDS = 150.0
"""A point that takes longer is given up; those of the grid are expected to take a sixth of that."""


@dataclass(frozen=True, slots=True)
class Order:
    """How long to measure, into which file, and whether each point is traced as well."""

    minutes: float
    output: Path
    traces: bool


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
