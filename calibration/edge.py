"""Verdicts at the edge: just below and just above what is said to fit a part of a card, did it run?

python -m calibration.edge --gpu h100 [--cap 15GB]... [--minutes 5] [--json]
python -m calibration.edge --records FILE [--json]

Without records no card is needed: each step is traced and replayed on the model of torch's allocator with the capacity
of the cap, which says whether it would run. That holds the closed form to the simulation, and neither to a card.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from calibration.measure import ending, parse_cap
from calibration.measuring.grid import Planned, capped_grid
from calibration.measuring.measurement import Measurement, read_measurements
from planner.memory.verdict import Verdict
from planner.report.answer import method_words
from planner.report.console import data_console
from planner.report.document import print_json
from planner.report.progress import progress_bar
from planner.report.table import Column, print_table
from planner.units import format_bytes
from profiles.errors import FituneError, InputError
from profiles.gpu import GpuProfile
from profiles.gpu_catalog import find_gpu

By = Literal["simulation", "measurement"]

CAPS = ("15GB", "24GB", "40GB", "80GB")
DRAWS = 24
COLUMNS = (
    Column("memory", justify="right"),
    Column("model"),
    Column("method", rank=2),
    Column("batch", rank=1, justify="right"),
    Column("needs", rank=3, justify="right"),
    Column("said"),
    Column("did it run?"),
)


@dataclass(frozen=True, slots=True)
class Edge:
    """One point near a limit: what was said of it, and whether it ran."""

    cap_bytes: int
    model: str
    method: str
    batch: str
    process_bytes: int
    said: Verdict
    ran: bool


def measured_edges(measurements: Sequence[Measurement]) -> list[Edge]:
    """The capped points of records that ran or met the end of memory."""
    return [
        _edge(one.point.cap_bytes, one, one.expected.verdict, one.attempt.outcome == "ran")
        for one in measurements
        if one.point.cap_bytes and one.expected.verdict and one.attempt.outcome != "failed"
    ]


def simulated_edges(points: Sequence[Planned], gpu: GpuProfile, minutes: float) -> list[Edge]:
    """What the allocator's model says of `points`, as many as there is time for.

    Those that cannot be traced are left out.
    """
    deadline = time.monotonic() + 60 * minutes
    found = []
    with progress_bar("simulating") as progress:
        for number, one in enumerate(points):
            if time.monotonic() > deadline:
                break
            try:
                ran = _runs(one, gpu)
            except FituneError as error:
                sys.stderr.write(f"left out: {one.point.config.model}: {error.message}\n")
                continue
            found.append(_simulated(one, ran))
            progress((number + 1) / len(points))
    return found


def _runs(one: Planned, gpu: GpuProfile) -> bool:
    """Whether the replay of the traced step ends within what the cap leaves to the allocator."""
    # torch takes seconds to import, and records need none of it.
    from calibration.allocator.caching import Settings
    from calibration.allocator.loading import with_loading
    from calibration.allocator.replay import replay
    from calibration.trace.model_config import transformers_config
    from calibration.trace.step_trace import trace

    point = one.point
    stream = trace(transformers_config(point.model), point.step, workspace_bytes=gpu.cublas_workspace_bytes)
    settings = Settings(expandable_segments=True, capacity=point.allocator_limit_bytes)
    return replay(with_loading(stream, point.step), settings).out_of_memory is None


def _simulated(one: Planned, ran: bool) -> Edge:
    config = one.point.config
    return Edge(
        cap_bytes=one.point.cap_bytes or 0,
        model=config.model.rpartition("/")[2],
        method=method_words(config),
        batch=f"{config.per_device_train_batch_size} x {config.max_length}",
        process_bytes=one.prediction.estimate.process_bytes,
        said=one.prediction.verdict,
        ran=ran,
    )


def _edge(cap_bytes: int, one: Measurement, said: Verdict, ran: bool) -> Edge:
    config = one.point.config
    return Edge(
        cap_bytes=cap_bytes,
        model=config.model.rpartition("/")[2],
        method=method_words(config),
        batch=f"{config.per_device_train_batch_size} x {config.max_length}",
        process_bytes=one.expected.closed_form.process_bytes or 0,
        said=said,
        ran=ran,
    )


def print_edges(edges: Sequence[Edge], by: By, *, as_json: bool) -> None:
    """Print each point, and how often what was said came true."""
    counts = Counter((edge.said, edge.ran) for edge in edges)
    if as_json:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        totals = {said: {"ran": counts[said, True], "out_of_memory": counts[said, False]} for said in get_args(Verdict)}
        print_json({"by": by, "time": now, "edges": [asdict(edge) for edge in edges], "verdicts": totals})
        return
    console = data_console()
    if not edges:
        console.print("no point was tried")
        return
    print_table(console, COLUMNS, [_row(edge) for edge in edges])
    console.print()
    for line in _totals(counts):
        console.print(line)
    if by == "simulation":
        console.print(
            "by simulation: the trainer's own step, replayed on a model of torch's allocator; no card was asked"
        )


def _row(edge: Edge) -> list[str]:
    size, ran = format_bytes(edge.cap_bytes), "yes" if edge.ran else "out of memory"
    return [size, edge.model, edge.method, edge.batch, format_bytes(edge.process_bytes), edge.said, ran]


def _totals(counts: Counter[tuple[Verdict, bool]]) -> Iterator[str]:
    for said in get_args(Verdict):
        total = counts[said, True] + counts[said, False]
        if total:
            yield f"said {said}: {counts[said, True]} of {total} ran"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdicts at the edge. Returns 0, 1 if a run that was said to fit met the end of memory."""
    parser = argparse.ArgumentParser(prog="python -m calibration.edge", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=Path, action="append", help="what `fitune calibrate --cap` measured")
    parser.add_argument("--gpu", help="card to simulate a part of, such as h100")
    parser.add_argument("--cap", action="append", help="memory of the process, such as 15GB; default: 15, 24, 40, 80")
    parser.add_argument("--minutes", type=float, default=5.0, help="begin no simulation after that")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    return ending(lambda: _run(arguments), as_json=arguments.json)


def _run(arguments: argparse.Namespace) -> int:
    if bool(arguments.records) == bool(arguments.gpu):
        raise InputError("name --records of a card, or a --gpu to simulate", hint="for example --gpu h100")
    if arguments.records:
        edges = measured_edges([one for path in arguments.records for one in read_measurements(path)])
        by: By = "measurement"
    else:
        gpu = find_gpu(arguments.gpu)
        sizes = [parse_cap(text) for text in arguments.cap or CAPS]
        caps = [size for size in sizes if size <= gpu.memory_bytes]
        edges, by = simulated_edges(capped_grid(gpu, caps, DRAWS), gpu, arguments.minutes), "simulation"
    print_edges(edges, by, as_json=arguments.json)
    return 1 if any(edge.said == "fits" and not edge.ran for edge in edges) else 0


if __name__ == "__main__":
    sys.exit(main())
