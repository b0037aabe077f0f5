"""The error table: what is predicted against what was measured.

python -m calibration.compare --runs FILE.csv --with closed-form [--json]
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from calibration.measured_runs import MeasuredRun, question, read_runs
from planner.memory.estimate import estimate
from planner.units import MIB
from planner.verdict import Verdict, usable_bytes, verdict
from profiles.errors import FituneError, InputError

WIDTH = 120
"""Columns of the tables where no terminal says its own."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run: the predicted bytes of what it measured. A run that failed has no measurement."""

    run: MeasuredRun
    predicted_bytes: int
    verdict: Verdict

    @property
    def error(self) -> float | None:
        """(predicted - measured) / measured."""
        measured = self.run.measured_bytes
        return None if measured is None else self.predicted_bytes / measured - 1


@dataclass(frozen=True, slots=True)
class Skipped:
    """A run that cannot be compared, and why."""

    id: str
    why: str


@dataclass(frozen=True, slots=True)
class Summary:
    """The errors of a set of runs, as fractions of what was measured.

    A false fit is a run that failed and is called `fits`; a false refusal is one that ran and is called `no`.
    """

    rows: int
    skipped: tuple[Skipped, ...]
    median_abs_error: float | None
    p95_abs_error: float | None
    mean_error: float | None
    false_fits: int
    false_refusals: int


def compare(runs: Iterable[MeasuredRun]) -> tuple[list[Comparison], list[Skipped]]:
    """Every run against the closed form, and those that it does not cover."""
    compared, skipped = [], []
    for run in runs:
        try:
            compared.append(_compare(run))
        except InputError as error:
            skipped.append(Skipped(run.id, error.message))
    return compared, skipped


def _compare(run: MeasuredRun) -> Comparison:
    model, step, gpu = question(run)
    predicted = estimate(model, step, gpu)
    metric = predicted.allocated_bytes if run.metric == "max_allocated" else predicted.reserved_bytes
    return Comparison(run, metric, verdict(predicted, usable_bytes(gpu)))


def summarize(compared: list[Comparison], skipped: list[Skipped]) -> Summary:
    """The summary of `compared`; errors are None where nothing was measured."""
    errors = [comparison.error for comparison in compared if comparison.error is not None]
    absolute = sorted(map(abs, errors))
    return Summary(
        rows=len(compared),
        skipped=tuple(skipped),
        median_abs_error=median(absolute) if absolute else None,
        p95_abs_error=quantiles(absolute, n=20, method="inclusive")[-1] if len(absolute) > 1 else None,
        mean_error=fmean(errors) if errors else None,
        false_fits=sum(c.run.fits == "no" and c.verdict == "fits" for c in compared),
        false_refusals=sum(c.run.fits == "yes" and c.verdict == "no" for c in compared),
    )


def as_json(compared: list[Comparison], skipped: list[Skipped]) -> dict[str, Any]:
    """Everything as plain data: `rows` with predicted and measured bytes, and `summary`."""
    rows = [
        {
            "id": comparison.run.id,
            "metric": comparison.run.metric or None,
            "predicted_bytes": comparison.predicted_bytes,
            "measured_bytes": comparison.run.measured_bytes,
            "error": comparison.error,
            "verdict": comparison.verdict,
            "ran": comparison.run.fits == "yes",
        }
        for comparison in compared
    ]
    return {"rows": rows, "summary": asdict(summarize(compared, skipped))}


def print_tables(compared: list[Comparison], skipped: list[Skipped], console: Console) -> None:
    """The errors run by run, by group, and what was skipped."""
    console.print(_run_table(compared))
    console.print(_group_table(compared))
    reasons: dict[str, list[str]] = {}
    for skip in skipped:
        reasons.setdefault(skip.why, []).append(skip.id)
    for why, ids in reasons.items():
        shown = ", ".join(ids[:6]) + (f" and {len(ids) - 6} more" if len(ids) > 6 else "")
        console.print(f"skipped {len(ids)}: {why} ({shown})", highlight=False)


def _run_table(compared: list[Comparison]) -> Table:
    table = Table(title="Predicted and measured, MiB")
    for column in ("run", "model", "method", "batch", "metric"):
        table.add_column(column, no_wrap=column != "model")
    for column in ("predicted", "measured", "error", "verdict"):
        table.add_column(column, justify="right", no_wrap=True)
    for comparison in compared:
        run, error = comparison.run, comparison.error
        table.add_row(
            run.id,
            run.model.rpartition("/")[2],
            run.method,
            f"{run.micro_batch} x {run.seq_len}",
            run.metric.removeprefix("max_") or "ran out",
            f"{comparison.predicted_bytes / MIB:,.0f}",
            "-" if run.peak_mib is None else f"{run.peak_mib:,.0f}",
            "-" if error is None else f"{error:+.1%}",
            comparison.verdict,
        )
    return table


def _group_table(compared: list[Comparison]) -> Table:
    table = Table("runs", title="Errors by group")
    for column in ("rows", "median", "95th percentile", "mean", "false fits", "false refusals"):
        table.add_column(column, justify="right")
    groupings: dict[str, Callable[[MeasuredRun], str]] = {
        "harness": lambda run: run.harness,
        "method": lambda run: run.method,
        "metric": lambda run: run.metric.removeprefix("max_") or "ran out",
        "attention": lambda run: "eager" if run.attention == "eager" else "fused attention",
    }
    for key_of in groupings.values():
        for key in sorted({key_of(comparison.run) for comparison in compared}):
            _add_group(table, key, [comparison for comparison in compared if key_of(comparison.run) == key])
        table.add_section()
    _add_group(table, "all", compared)
    return table


def _add_group(table: Table, name: str, compared: list[Comparison]) -> None:
    summary = summarize(compared, [])
    errors = (summary.median_abs_error, summary.p95_abs_error, summary.mean_error)
    table.add_row(
        name,
        str(summary.rows),
        *("-" if error is None else f"{error:.1%}" for error in errors),
        str(summary.false_fits),
        str(summary.false_refusals),
    )


def main(
    runs: Annotated[Path, typer.Option(help="CSV file of measured runs.")],
    with_: Annotated[Literal["closed-form"], typer.Option("--with", help="What predicts.")] = "closed-form",
    as_data: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare predictions with measured runs, row by row and in groups."""
    try:
        compared, skipped = compare(read_runs(runs))
    except FituneError as error:
        Console(stderr=True, highlight=False).print(f"error: {error.message}", markup=False)
        raise typer.Exit(error.exit_code) from error
    if as_data:
        typer.echo(json.dumps(as_json(compared, skipped), indent=1))
    else:
        print_tables(compared, skipped, Console(width=None if sys.stdout.isatty() else WIDTH))


application = typer.Typer(add_completion=False)
application.command()(main)


if __name__ == "__main__":
    application()
