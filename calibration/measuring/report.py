"""What a user sees of a calibration: the grid, a line for each point as it ends, and a summary."""

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from calibration.measuring.grid import Planned, checkpointing
from calibration.measuring.measurement import Measurement
from planner.config.run_config import RunConfig
from planner.report.console import data_console
from planner.report.document import print_json
from planner.report.table import Cell, Column, print_table
from planner.units import format_bytes, format_seconds
from profiles.gpu import GpuProfile

COLUMNS = (
    Column("model"),
    Column("method", rank=1),
    Column("objective", rank=5),
    Column("batch"),
    Column("checkpoints", rank=2),
    Column("attention", rank=6),
    Column("loss", rank=7),
    Column("optimizer", rank=8),
    Column("cap", justify="right"),
    Column("needs", justify="right"),
    Column("verdict", rank=3),
    Column("tokens/s", rank=4, justify="right"),
)


def print_grid(points: Sequence[Planned], gpu: GpuProfile | None, *, as_json: bool) -> None:
    """Print what would be measured, in its order, with what is predicted."""
    if as_json:
        described = [
            one.point.model_dump(mode="json")
            | {"predicted": one.prediction.figures, "verdict": one.prediction.verdict, "seconds": one.seconds}
            for one in points
        ]
        print_json({"gpu": gpu.name if gpu else None, "points": described})
        return
    console = data_console()
    print_table(console, COLUMNS, [_row(one) for one in points])
    seconds = format_seconds(sum(one.seconds for one in points))
    console.print(
        f"\n{len(points)} points, the most informative first; their steps alone would take {seconds}.", soft_wrap=True
    )


def _row(one: Planned) -> list[Cell]:
    config, speed = one.point.config, one.prediction.speed
    return [
        _model(config),
        _method(config),
        config.objective,
        _batch(config),
        checkpointing(config),
        config.attn_implementation,
        config.loss,
        config.optim,
        format_bytes(one.point.cap_bytes) if one.point.cap_bytes else "",
        format_bytes(one.prediction.estimate.process_bytes),
        one.prediction.verdict,
        f"{speed.tokens_per_second:,.0f}" if speed else "",
    ]


def line(measurement: Measurement) -> str:
    """One point, predicted and measured."""
    point, attempt = measurement.point, measurement.attempt
    config, measured = point.config, attempt.measured
    who = f"plain {point.trainer}: " if point.trainer != "fitune" else ""
    way = f"checkpoints {checkpointing(config)}, {config.loss} loss"
    words = f"{who}{_model(config)} {_method(config)} {config.objective} {_batch(config)}, {way}"
    if point.cap_bytes:
        words += f" in {format_bytes(point.cap_bytes)}, said {measurement.expected.verdict}"
    if attempt.outcome == "failed":
        return f"{words}: failed in {attempt.ended_in or 'its process'}: {attempt.message}"
    if measured is None or measured.allocated_bytes is None or measurement.error is None:
        return f"{words}: out of memory in {attempt.ended_in}"
    predicted, speed = measurement.expected.closed_form.allocated_bytes, measured.tokens_per_second
    sizes = f"{format_bytes(predicted)} predicted, {format_bytes(measured.allocated_bytes)} measured"
    return f"{words}: {sizes} ({measurement.error:+.1%}), {speed or 0:,.0f} tokens/s"


def print_summary(found: Sequence[Measurement], output: Path, *, as_json: bool) -> None:
    """Print what this run added to `output`."""
    outcomes = Counter(one.attempt.outcome for one in found)
    verdicts = Counter(
        (str(one.expected.verdict), one.attempt.outcome)
        for one in found
        if one.point.cap_bytes and one.attempt.outcome != "failed"
    )
    errors = [abs(one.error) for one in found if one.error is not None]
    median = statistics.median(errors) if errors else None
    if as_json:
        print_json(
            {
                "records": str(output),
                "outcomes": dict(outcomes),
                "median_abs_error": median,
                "verdicts": [{"verdict": v, "outcome": o, "points": n} for (v, o), n in sorted(verdicts.items())],
                "measurements": [one.model_dump(mode="json") for one in found],
            }
        )
        return
    console = data_console()
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    said = f"\n{counts}; appended to {output}" if found else f"nothing was added to {output}"
    console.print(said, soft_wrap=True)
    if median is not None:
        console.print(f"allocated memory, closed form against measured: median error {median:.1%}")
    for (verdict, outcome), count in sorted(verdicts.items()):
        console.print(f"  said {verdict}: {outcome} {count} times")


def _model(config: RunConfig) -> str:
    return config.model.rpartition("/")[2]


def _method(config: RunConfig) -> str:
    return f"{config.method} {config.quantization or config.dtype}"


def _batch(config: RunConfig) -> str:
    return f"{config.per_device_train_batch_size} x {config.max_length}"
