"""Writes the error table of the shipped runs into the documentation.

python -m calibration.errors_page [--with closed-form|trace]
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from calibration.compare import Predict, Way, by_closed_form, by_trace, compare
from calibration.truth.error_table import (
    COLUMNS,
    IN_A_RACE,
    METRICS,
    Comparison,
    Metric,
    Skipped,
    by_loading,
    errors_of,
    figures,
    group_lines,
    method,
    reasons,
    within_race,
)
from calibration.truth.kept_traces import KeptTraces
from calibration.truth.measured_runs import read_runs
from calibration.truth.misses import misses
from planner.report.markdown import markdown_table
from planner.units import MIB

HERE = Path(__file__).parent
RUNS = HERE / "truth" / "runs.csv"
PAGE = HERE / "ERRORS.md"
TRACED = HERE / "traced.json"

EXPLAINED_FROM: dict[Metric, float] = {"allocated": 0.03, "reserved": 0.05}
"""Errors of traces above these are explained."""

EXPLAINED_ON_SEVERAL_CARDS = 0.12
"""So are those of the closed form above this, where cards share a run that no trace follows."""

OFF: dict[Way, str] = {
    "trace": "Why runs are off by more than 3 % of allocated or 5 % of reserved memory:",
    "closed-form": "Why runs on several cards are off by more than 12 %:",
}

TITLES: dict[Way, str] = {"trace": "By tracing the step", "closed-form": "By the closed form"}
RACE = """Reserved memory by how the weights came onto the card, without PEFT's comparison. Transformers 5.0 loads by
threads that race (`truth/loading_race.py`), and what they leave of the cache differs from run to run. The simulation
takes one weight after the other, as later versions do:"""
INTRODUCTION = """# Errors of the predictions

What is predicted for the training runs of [truth](truth/README.md), which other people measured, and what they
measured. This page is written by `python -m calibration.errors_page`, and a test fails when it is stale. What traces
predict is kept in [traced.json](traced.json), of which the test traces some again. Memory is in MiB, errors are
fractions of what was measured. A false fit is a run that ran out of memory and is called `fits`, a false refusal one
that ran and is called `no`.
"""


def section(way: Way, compared: Sequence[Comparison], skipped: Sequence[Skipped]) -> str:
    """The part of the page about one way to predict."""
    groups = [line for lines in group_lines(compared) for line in lines]
    runs = [_run_line(comparison) for comparison in compared]
    why = [f"- {', '.join(miss.rows)}: {miss.why}. Source: {miss.source}." for miss in misses(way)]
    left_out = [f"- {len(ids)}: {why} ({', '.join(ids)})" for why, ids in reasons(skipped).items()]
    raced = _race_parts(compared) if way == "trace" else ()
    headings = ("run", "model", "method", "batch", *(f"{m} {c}" for m in METRICS for c in ("", "measured", "error")))
    return "\n\n".join(
        (
            f"## {TITLES[way]}",
            markdown_table(("runs", *COLUMNS), groups),
            markdown_table((*(heading.strip() for heading in headings), "verdict"), runs),
            OFF[way],
            "\n".join(why),
            *raced,
            "Left out:",
            "\n".join(left_out),
        )
    )


def _race_parts(compared: Sequence[Comparison]) -> tuple[str, ...]:
    """Reserved memory with and without the runs whose loading was a race, and the range of what these can reserve."""
    groups = [
        (name, str(errors.rows), f"{errors.median_abs_error or 0:.2%}", f"{errors.p95_abs_error or 0:.1%}")
        for name, found in by_loading(compared).items()
        if (errors := errors_of(found, "reserved")).rows
    ]
    lines = []
    for one in by_loading(compared)[IN_A_RACE]:
        measured, predicted = one.run.reserved_bytes, one.predicted
        low, high = predicted.reserved_range or (predicted.reserved_bytes, predicted.reserved_bytes)
        inside = "yes" if within_race(one) else "no"
        sizes = (f"{size / MIB:,.0f}" for size in (measured or 0, predicted.reserved_bytes, low, high))
        lines.append((one.run.id, one.run.model.rpartition("/")[2], *sizes, inside))
    headings = ("run", "model", "measured", "one after the other", "least", "most", "inside")
    return (
        RACE,
        markdown_table(("loading", "runs", "median", "95th percentile"), groups),
        "What is reserved in MiB if the threads are ahead by no weight to all of them:",
        markdown_table(headings, lines),
    )


def _run_line(comparison: Comparison) -> tuple[str, ...]:
    run = comparison.run
    found = (figure for metric in METRICS for figure in figures(comparison, metric))
    verdict = comparison.predicted.verdict + ("" if run.fits == "yes" else " (ran out)")
    return run.id, run.model.rpartition("/")[2], method(run), f"{run.micro_batch} x {run.seq_len}", *found, verdict


def sections(page: str) -> dict[Way, str]:
    """The parts of a page."""
    parts = re.split(r"(?=^## )", page, flags=re.MULTILINE)[1:]
    return {way: part.strip() for way, title in TITLES.items() for part in parts if part.startswith(f"## {title}\n")}


def main(
    with_: Annotated[Way | None, typer.Option("--with", help="Remake only this part; the trace takes minutes.")] = None,
) -> None:
    """Write calibration/ERRORS.md."""
    runs = read_runs(RUNS)
    predictors: dict[Way, Predict] = {
        "closed-form": by_closed_form,
        "trace": partial(by_trace, kept=KeptTraces(TRACED)),
    }
    made = {way: section(way, *compare(runs, predictors[way])) for way in TITLES if with_ in (None, way)}
    parts = (sections(PAGE.read_text("utf-8")) if PAGE.exists() else {}) | made
    written = (INTRODUCTION.strip(), *(parts[way] for way in TITLES if way in parts))
    PAGE.write_text("\n\n".join(written) + "\n", "utf-8")


if __name__ == "__main__":
    typer.run(main)
