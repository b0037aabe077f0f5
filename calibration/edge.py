"""Verdicts at the edge: just below and just above what is said to fit a part of a card, did it run?

python -m calibration.edge --gpu h100 [--cap 15GB]... [--minutes 5] [--json]
python -m calibration.edge --records FILE [--json]

Without records no card is needed: each step is traced and replayed on the model of torch's allocator with the capacity
of the cap, which says whether it would run. That holds the closed form to the simulation, and neither to a card.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from calibration.measuring.command import ending, parse_cap
from calibration.measuring.grid import Planned, capped, capped_grid, checkpointing
from calibration.measuring.measurement import Measurement, read_measurements
from planner.config.run_config import RunConfig
from planner.memory.verdict import Verdict
from planner.predict.prediction import Target, predict
from planner.report.answer import method_words
from planner.report.console import data_console
from planner.report.document import print_json
from planner.report.progress import progress_bar
from planner.report.table import Column, print_table
from planner.units import format_bytes
from profiles.errors import FituneError, InputError
from profiles.gpu import GpuProfile
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model

SIMULATED = Path(__file__).with_name("records") / "edge-simulated.json"
"""What this printed as JSON."""

CAPS = ("15GB", "24GB", "40GB", "80GB")
COLUMNS = (
    Column("memory", justify="right"),
    Column("model"),
    Column("method", rank=2),
    Column("batch", rank=1, justify="right"),
    Column("checkpoints", rank=4),
    Column("attention", rank=5),
    Column("needs", rank=3, justify="right"),
    Column("said"),
    Column("did it run?"),
)


@dataclass(frozen=True, slots=True)
class Edge:
    """One run near a limit: what is said of it, and whether it ran."""

    cap_bytes: int
    config: RunConfig
    process_bytes: int
    said: Verdict
    ran: bool

    @property
    def words(self) -> tuple[str, ...]:
        """Memory, model, method, batch, checkpoints and attention, what it needs, what is said, and what came of it."""
        config = self.config
        return (
            format_bytes(self.cap_bytes),
            config.model.rpartition("/")[2],
            method_words(config),
            f"{config.per_device_train_batch_size} x {config.max_length}",
            checkpointing(config),
            config.attn_implementation,
            format_bytes(self.process_bytes),
            self.said,
            "yes" if self.ran else "out of memory",
        )


def measured_edges(measurements: Sequence[Measurement]) -> list[Edge]:
    """The capped points of records that ran or met the end of memory, with what was said of them."""
    return [
        Edge(
            one.point.cap_bytes,
            one.point.config,
            one.expected.closed_form.process_bytes or 0,
            one.expected.verdict,
            one.attempt.outcome == "ran",
        )
        for one in measurements
        if one.point.cap_bytes and one.expected.verdict and one.attempt.outcome != "failed"
    ]


def shipped_edges() -> tuple[str, list[Edge]]:
    """When the shipped points were simulated, and what is said of them now."""
    document = json.loads(SIMULATED.read_text("utf-8"))
    gpu = find_gpu(document["gpu"])
    return document["time"], [_judged(row, gpu) for row in document["edges"]]


def _judged(row: dict[str, Any], gpu: GpuProfile) -> Edge:
    config = RunConfig.model_validate(row["config"])
    said = predict(config, Target(find_model(config.model), capped(gpu, row["cap_bytes"])))
    return Edge(row["cap_bytes"], config, said.estimate.process_bytes, said.verdict, row["ran"])


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
                ran = runs_in_simulation(one, gpu)
            except FituneError as error:
                sys.stderr.write(f"left out: {one.point.config.model}: {error.message}\n")
                continue
            estimate, said = one.prediction.estimate, one.prediction.verdict
            found.append(Edge(one.point.cap_bytes or 0, one.point.config, estimate.process_bytes, said, ran))
            progress((number + 1) / len(points))
    return found


def runs_in_simulation(one: Planned, gpu: GpuProfile) -> bool:
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


def print_edges(edges: Sequence[Edge], gpu: GpuProfile | None, *, as_json: bool) -> None:
    """Print each point, and how often what was said came true. `gpu` is the card that was only simulated."""
    counts = said_and_ran(edges)
    if as_json:
        print_json(
            {
                "by": "simulation" if gpu else "measurement",
                "gpu": gpu.name if gpu else None,
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "edges": [
                    asdict(edge) | {"config": edge.config.model_dump(mode="json", exclude_defaults=True)}
                    for edge in edges
                ],
                "verdicts": {said: {"ran": ran, "out_of_memory": total - ran} for said, (ran, total) in counts.items()},
            }
        )
        return
    console = data_console()
    if not edges:
        console.print("no point was tried")
        return
    print_table(console, COLUMNS, [edge.words for edge in edges])
    console.print()
    for said, (ran, total) in counts.items():
        console.print(f"said {said}: {ran} of {total} ran")
    if gpu:
        console.print(
            "by simulation: the trainer's own step, replayed on a model of torch's allocator; no card was asked"
        )


def said_and_ran(edges: Sequence[Edge]) -> dict[Verdict, tuple[int, int]]:
    """How many ran of how many, by what was said of them."""
    return {
        said: (sum(ran), len(ran))
        for said in get_args(Verdict)
        for ran in ([edge.ran for edge in edges if edge.said == said],)
    }


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
        gpu = None
    else:
        gpu = find_gpu(arguments.gpu)
        sizes = [parse_cap(text) for text in arguments.cap or CAPS]
        caps = [size for size in sizes if size <= gpu.memory_bytes]
        edges = simulated_edges(capped_grid(gpu, caps), gpu, arguments.minutes)
    print_edges(edges, gpu, as_json=arguments.json)
    return 1 if any(edge.said == "fits" and not edge.ran for edge in edges) else 0


if __name__ == "__main__":
    sys.exit(main())
