"""The error table: predictions beside what was measured, run by run and in groups, as text and as plain data."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median, quantiles
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from calibration.truth.loading_race import races
from calibration.truth.measured_runs import MeasuredRun
from calibration.truth.prediction import Prediction
from planner.units import MIB

Metric = Literal["allocated", "reserved"]
METRICS: tuple[Metric, ...] = ("allocated", "reserved")

GROUPINGS: dict[str, Callable[[MeasuredRun], str]] = {
    "harness": lambda run: run.harness,
    "cards": lambda run: "one GPU" if run.num_gpus == 1 else "several GPUs",
    "method": lambda run: run.method,
    "attention": lambda run: "eager" if run.attention == "eager" else "fused attention",
    "model": lambda run: run.model.rpartition("/")[2],
}
IN_A_RACE, IN_ORDER = "in a race", "one after the other"
COLUMNS = ("rows", "median", "95th percentile", "mean", "false fits", "false refusals")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run beside its prediction. A run that failed has no measurement."""

    run: MeasuredRun
    predicted: Prediction

    def measured_bytes(self, metric: Metric) -> int | None:
        """What the run measured, if it did."""
        return self.run.allocated_bytes if metric == "allocated" else self.run.reserved_bytes

    def predicted_bytes(self, metric: Metric) -> int:
        """What is predicted for it."""
        return self.predicted.allocated_bytes if metric == "allocated" else self.predicted.reserved_bytes

    def error_of(self, metric: Metric) -> float | None:
        """(predicted - measured) / measured, None where it was not measured."""
        measured = self.measured_bytes(metric)
        return None if measured is None else self.predicted_bytes(metric) / measured - 1

    @property
    def metric(self) -> Metric:
        """The figure by which the run is judged: allocated memory where it was published."""
        return "reserved" if self.run.allocated_bytes is None and self.run.reserved_bytes is not None else "allocated"

    @property
    def error(self) -> float | None:
        """The error of `metric`, None for a run that failed."""
        return self.error_of(self.metric)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A run that cannot be compared, and why."""

    id: str
    why: str


@dataclass(frozen=True, slots=True)
class Errors:
    """The errors of some runs, as fractions of what was measured; None where nothing was."""

    rows: int
    median_abs_error: float | None
    p95_abs_error: float | None
    mean_error: float | None


@dataclass(frozen=True, slots=True)
class Summary(Errors):
    """The errors of all runs by the metric of each, and the wrong verdicts.

    A false fit is a run that failed and is called `fits`; a false refusal is one that ran and is called `no`.
    """

    skipped: tuple[Skipped, ...]
    false_fits: int
    false_refusals: int


def errors_of(compared: Sequence[Comparison], metric: Metric | None = None) -> Errors:
    """The errors of `metric`, or of the metric of each run."""
    found = (comparison.error_of(metric) if metric else comparison.error for comparison in compared)
    errors = [error for error in found if error is not None]
    absolute = sorted(map(abs, errors))
    return Errors(
        rows=len(errors) if metric else len(compared),
        median_abs_error=median(absolute) if absolute else None,
        p95_abs_error=quantiles(absolute, n=20, method="inclusive")[-1] if len(absolute) > 1 else None,
        mean_error=fmean(errors) if errors else None,
    )


def summarize(compared: Sequence[Comparison], skipped: Sequence[Skipped]) -> Summary:
    """The summary of `compared`."""
    return Summary(
        **asdict(errors_of(compared)),
        skipped=tuple(skipped),
        false_fits=sum(c.run.fits == "no" and c.predicted.verdict == "fits" for c in compared),
        false_refusals=sum(c.run.fits == "yes" and c.predicted.verdict == "no" for c in compared),
    )


def groups(compared: Sequence[Comparison]) -> dict[str, dict[str, list[Comparison]]]:
    """The runs by what they have in common: the name of a grouping, of a group, and its runs."""
    return {
        name: {
            key: [comparison for comparison in compared if key_of(comparison.run) == key]
            for key in sorted({key_of(comparison.run) for comparison in compared})
        }
        for name, key_of in GROUPINGS.items()
    }


def as_json(compared: Sequence[Comparison], skipped: Sequence[Skipped]) -> dict[str, Any]:
    """Everything as plain data: `rows` with predicted and measured bytes, `summary`, `by_metric` and `groups`."""
    return {
        "rows": [_row_as_json(comparison) for comparison in compared],
        "summary": asdict(summarize(compared, skipped)),
        "by_metric": {metric: asdict(errors_of(compared, metric)) for metric in METRICS},
        "groups": {
            name: {key: asdict(summarize(members, [])) for key, members in grouping.items()}
            for name, grouping in groups(compared).items()
        },
    }


def _row_as_json(comparison: Comparison) -> dict[str, Any]:
    metric = comparison.metric
    return {
        "id": comparison.run.id,
        "metric": comparison.run.metric or None,
        "predicted_bytes": comparison.predicted_bytes(metric),
        "measured_bytes": comparison.measured_bytes(metric),
        "error": comparison.error,
        "verdict": comparison.predicted.verdict,
        "ran": comparison.run.fits == "yes",
    } | {
        name: {
            "predicted_bytes": comparison.predicted_bytes(name),
            "measured_bytes": comparison.measured_bytes(name),
            "error": comparison.error_of(name),
        }
        for name in METRICS
    }


def print_tables(compared: Sequence[Comparison], skipped: Sequence[Skipped], console: Console) -> None:
    """The errors run by run, by group, and what was skipped."""
    console.print(_run_table(compared))
    console.print(_group_table(compared))
    for why, ids in reasons(skipped).items():
        shown = ", ".join(ids[:6]) + (f" and {len(ids) - 6} more" if len(ids) > 6 else "")
        console.print(f"skipped {len(ids)}: {why} ({shown})", highlight=False)


def reasons(skipped: Sequence[Skipped]) -> dict[str, list[str]]:
    """The ids of the runs that were skipped for each reason."""
    found: dict[str, list[str]] = {}
    for skip in skipped:
        found.setdefault(skip.why, []).append(skip.id)
    return found


def _run_table(compared: Sequence[Comparison]) -> Table:
    table = Table(title="Predicted and measured, MiB")
    for column in ("run", "model", "method", "batch"):
        table.add_column(column, no_wrap=column != "model")
    for column in ("allocated", "measured", "error", "reserved", "measured", "error", "verdict"):
        table.add_column(column, justify="right", no_wrap=True)
    for comparison in compared:
        run = comparison.run
        texts = (text for metric in METRICS for text in figures(comparison, metric))
        batch = f"{run.micro_batch} x {run.seq_len}"
        verdict = comparison.predicted.verdict + ("" if run.fits == "yes" else " (ran out)")
        table.add_row(run.id, run.model.rpartition("/")[2], method(run), batch, *texts, verdict)
    return table


def method(run: MeasuredRun) -> str:
    """What is trained, and on how many cards where it is more than one."""
    return run.method if run.num_gpus == 1 else f"{run.method}, {run.num_gpus} x {run.parallel}"


def figures(comparison: Comparison, metric: Metric) -> tuple[str, str, str]:
    """Predicted and measured MiB, and the error."""
    measured, error = comparison.measured_bytes(metric), comparison.error_of(metric)
    return (
        f"{comparison.predicted_bytes(metric) / MIB:,.0f}",
        "-" if measured is None else f"{measured / MIB:,.0f}",
        "-" if error is None else f"{error:+.1%}",
    )


def _group_table(compared: Sequence[Comparison]) -> Table:
    table = Table("runs", title="Errors by group")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for lines in group_lines(compared):
        for line in lines:
            table.add_row(*line)
        table.add_section()
    return table


def group_lines(compared: Sequence[Comparison]) -> list[list[tuple[str, ...]]]:
    """The lines of the table of groups, in sections: each grouping, each metric, and all."""
    sections = [
        [_line(key, summarize(members, [])) for key, members in grouping.items()]
        for grouping in groups(compared).values()
    ]
    sections.append([_line(metric, errors_of(compared, metric)) for metric in METRICS])
    return [*sections, [_line("all", summarize(compared, []))]]


def _line(name: str, errors: Errors) -> tuple[str, ...]:
    shares = (errors.median_abs_error, errors.p95_abs_error, errors.mean_error)
    wrong = (str(errors.false_fits), str(errors.false_refusals)) if isinstance(errors, Summary) else ("", "")
    return name, str(errors.rows), *("-" if share is None else f"{share:.1%}" for share in shares), *wrong


def by_loading(compared: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    """Runs on one card that published reserved memory, by how the weights came; PEFT's comparison apart."""
    known = [one for one in compared if one.run.reserved_bytes and one.run.num_gpus == 1 and one.run.harness != "PEFT"]
    return {
        IN_A_RACE: [one for one in known if races(one.run)],
        IN_ORDER: [one for one in known if not races(one.run)],
        "all": known,
    }


def within_race(one: Comparison) -> bool:
    """Whether a run reserved what the threads that loaded it can come to."""
    least, most = one.predicted.reserved_range or (0, 0)
    return least <= (one.run.reserved_bytes or 0) <= most
