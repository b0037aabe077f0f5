"""Writes ACCURACY.md: how accurate the answers are, how that is known, and what nobody has measured.

python -m calibration.accuracy_page
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import typer

from calibration.compare import compare
from calibration.edge import said_and_ran, shipped_edges
from calibration.fit import errors as speed_errors
from calibration.fit import fit, gather
from calibration.fitting.constants import constants_table, context_table, slack_table, unmeasured_table
from calibration.fitting.judged_runs import RUNS, JudgedRun, published_runs
from calibration.fitting.memory_errors import memory_errors
from calibration.fitting.speed import NAMES
from calibration.residuals import GROUPINGS, Coverage, coverage, now_fitted
from calibration.truth.error_table import METRICS, Errors, errors_of, summarize
from calibration.truth.measured_runs import read_runs
from planner.memory.verdict import Verdict
from planner.report.markdown import markdown_table

HERE = Path(__file__).parent
PAGE = HERE / "ACCURACY.md"
CPU_DUELS = HERE / "records" / "versus-cpu.json"

INTRODUCTION = """# How accurate is this, and how we know

Written by `python -m calibration.accuracy_page` from the data files and the runs that other people measured; a test
fails when it is stale. **No GPU was at hand when this was written.** What is said of memory was held against published
runs of other trainers and against a simulation; of speed, against published runs on one card. What nobody has measured
is listed at the end. `bash calibration/on_gpu.sh` measures all of it on a card in ten minutes, and `python -m
calibration.fit --write` and `python -m calibration.residuals --write` take up what it found."""

MEMORY = """## Memory

Errors are fractions of what was measured. [ERRORS.md](ERRORS.md) has every run, by the closed form and by a trace."""

BESIDE = """### Before and after what is fitted

Median errors by card, method and length (up to that many tokens). Allocated memory `before` is the tensors alone,
`after` has the workspaces of cuBLAS. Reserved memory `before` is the tensors alone, too, `after` has the slack of the
allocator; `left out` is with a slack that was fitted without the runs of that card. Beside the passes the slack is
fitted to simulated steps and to no run of this table, so there the two are the same."""

CONTEXT = """The CUDA context, in MiB: what messages in public show (`profiles/overheads.toml`), against 0 in a figure
that has only torch's memory. It is planned at the high end. `left out` is what would be planned for the card if its
messages were not known."""

RANGE = """## The range and the verdict

An answer is `fits` if the high end of its range has room. That end lies above the prediction by as much as measured
runs lay above theirs: the larger of the most that was seen and of what the next run stays below with 99 % confidence,
in shares of the bytes of activations (`profiles/residuals.toml`). The low end is the tensors alone, below which no
allocator can go.

Does that hold for runs that it was not made of? Each group of runs is left out in turn and predicted with the range
made of the others. `below the end` is the share of its runs that stayed below the high end. Then each run is put on
each of the common cards: how many pairs are called `fits`, and how many of those have room for what was measured; the
same for `no`. Runs that ran out of memory are counted by what is said of them."""

WHY_ABOVE = {
    "FIT-077": "`FIT-077` repeats `FIT-067` on a card that was nearly full, where the allocator held 12 % more.",
    "FQ": "Runs of FQ are of two cards.",
    "SWD": "Nobody but SWD measured full fine-tuning in which the optimizer step is the peak.",
}
"""What is known of runs that lie above their range, by their id or by who measured them."""

EDGE = """### At the edge, by simulation

Models and settings drawn at random, each with the longest rows that were called `fits` within a part of an H100, the
shortest that were called `no`, and a length between. Whether they ran is what a model of torch's allocator says to the
trainer's own step, traced, with expandable segments as `fitune launch` switches them on. What is said of them is said
by the formulas of now. No card was asked. `python -m calibration.edge --gpu h100` repeats it; with `--records` it tells
the same of runs on a card."""

SPEED = """## Speed

A step is a roofline over counted work. What share of its rates a card reaches cannot be counted; it is fitted on
published runs on one card, each constant with its spread (`profiles/fitted.toml`, which names the runs). `before` is
with what was known of the shares before any run was looked at (`[expected]` in `profiles/speed.toml`); `left out` is
the error of runs whose family was left out of the fit."""

DUELS = """## Beside plain TRL and plain Transformers

The same tiny model and settings in the three trainers, on a CPU, live tensors counted. `ours / theirs` is the peak of
this trainer over that of the other. Speeds on a CPU say nothing about a card and are not shown; `python -m
calibration.versus` prints both on the machine that it runs on."""

CONSTANTS = """## Where the constants come from"""

UNMEASURED_CONSTANTS = """### Constants that nobody measured

All that the data files in `profiles/` call unmeasured, assumed or a guess, in their own words. Each figure there has
its source beside it, which a test holds."""

UNMEASURED = """## Not measured by anybody, as far as we know

- This trainer on any GPU: the published runs are of plain Transformers, TRL, PEFT, ms-swift and FSDP scripts.
- What the process holds beside torch's memory, on every card but those named above; the figures for their generations
  are the high end of what messages in public show.
- Reserved memory with expandable segments, which `fitune launch` switches on: the published runs had torch's usual
  ones.
- Speed on any card but the A100, in float16 and float32, of int8, paged and offloaded states, of checkpoints in host
  memory; the speed of DPO and the other preference losses.
- The best of a measured grid against the planner's choice (`python -m calibration.plan_quality`), and verdicts at the
  edge on a card (`fitune calibrate --cap`): both are built, and were run on a CPU and in simulation only.
- AMD cards."""


def page() -> str:
    """The whole page, as the formulas and data files have it now."""
    runs, found = now_fitted()
    spreads = [
        (one.method, one.attention, str(one.runs), f"{one.high:+.2f}", ", ".join(one.groups)) for one in found.spreads
    ]
    held = {name: coverage(runs, group_of) for name, group_of in GROUPINGS.items()}
    parts = [
        INTRODUCTION,
        MEMORY,
        _memory_table(),
        BESIDE,
        _beside_table(published_runs(read_runs(RUNS))),
        CONTEXT,
        context_table(),
        RANGE,
        markdown_table(("method", "attention", "runs", "at most above", "measured by"), spreads),
        f"On a card that was not measured {found.unmeasured:.2f} is added, the largest difference between cards.",
        *(_coverage_table(name, lines) for name, lines in held.items()),
        _above(held["who measured"][-1]),
        *_edge_part(),
        SPEED,
        *_speed_part(),
        *_duel_part(),
        CONSTANTS,
        constants_table(),
        slack_table(),
        UNMEASURED_CONSTANTS,
        unmeasured_table(),
        UNMEASURED,
    ]
    return "\n\n".join(parts) + "\n"


def _above(everything: Coverage) -> str:
    """The runs that lie above a range that was made without those of who measured them."""
    if not everything.above:
        return "No run lies above the end, with all runs of the same people left out."
    known = [why for name, why in WHY_ABOVE.items() if any(run.startswith(name) for run in everything.above)]
    runs = ", ".join(everything.above)
    return f"Above the end, with all runs of the same people left out: {runs}. {' '.join(known)}"


def _memory_table() -> str:
    compared, _ = compare(read_runs(RUNS))
    summary = summarize(compared, [])
    rows: list[tuple[str, Errors]] = [(f"{metric} memory", errors_of(compared, metric)) for metric in METRICS]
    shares = [
        (name, str(one.rows), f"{one.median_abs_error or 0:.1%}", f"{one.p95_abs_error or 0:.1%}") for name, one in rows
    ]
    failed = sum(one.run.fits == "no" for one in compared)
    said = (
        f"Of {failed} runs that ran out of memory, {summary.false_fits} are called `fits`; of {len(compared) - failed} "
        f"that ran, {summary.false_refusals} are called `no`."
    )
    return markdown_table(("closed form", "runs", "median", "95th percentile"), shares) + f"\n\n{said}"


def _beside_table(runs: Sequence[JudgedRun]) -> str:
    headings = (
        "card",
        "method",
        "tokens",
        "runs",
        "allocated, before",
        "after",
        "reserved, before",
        "after",
        "left out",
    )
    lines = ((one.card, one.method, one.tokens, str(one.runs), *one.shares) for one in memory_errors(runs))
    return markdown_table(headings, lines)


def _coverage_table(name: str, lines: Sequence[Coverage]) -> str:
    headings = ("runs", "below the end", "called fits", "had room", "called no", "had none", "ran out: fits, tight, no")
    return markdown_table((f"left out: {name}", *headings), [_coverage_line(line) for line in lines])


def _coverage_line(line: Coverage) -> tuple[str, ...]:
    below = f"{line.below:.0%}" if line.runs else "-"
    verdicts = ", ".join(str(line.out_of_memory[said]) for said in get_args(Verdict))
    counts = (line.called_fits, line.had_room, line.called_no, line.had_none)
    return line.group, str(line.runs), below, *map(str, counts), verdicts


def _edge_part() -> list[str]:
    when, edges = shipped_edges()
    said = "; ".join(
        f"{ran} of {total} called `{verdict}` ran" for verdict, (ran, total) in said_and_ran(edges).items()
    )
    headings = (
        "memory",
        "model",
        "method",
        "batch",
        "checkpoints",
        "attention",
        "needs",
        "said",
        "ran in the simulation",
    )
    return [
        EDGE,
        f"Simulated on {when[:10]}, judged as now: {said}.",
        markdown_table(headings, [edge.words for edge in edges]),
    ]


def _speed_part() -> list[str]:
    evidence = gather([])
    found = fit(evidence)
    one = found.efficiencies("any", "any")
    constants = [
        (name.replace("_", " "), f"{getattr(one, name).value:.3g}", f"{getattr(one, name).spread:.0%}")
        for name in NAMES
    ]
    lines = [
        (line.gpu, line.method, line.tokens, str(line.runs), *(f"{error:.1%}" for error in line.fitted))
        for line in speed_errors(evidence, found)
    ]
    said = (
        f"Over {one.runs} runs the error is {one.error:.1%} (root mean square), {one.error_left_out:.1%} for families "
        "that were left out."
    )
    return [
        markdown_table(("share of its rate", "value", "spread"), constants),
        said,
        markdown_table(("card", "method", "tokens", "runs", "median error before", "after", "left out"), lines),
    ]


def _duel_part() -> list[str]:
    if not CPU_DUELS.exists():
        return []
    duels: list[dict[str, Any]] = json.loads(CPU_DUELS.read_text("utf-8"))["duels"]
    rows = [
        (
            one["run"],
            one["against"],
            f"{one['memory_ratio']:.3f}",
            f"{one['predicted_ratio']:.3f}",
            f"{one['their_predicted_ratio']:.3f}",
        )
        for one in duels
    ]
    headings = ("run", "against", "peak, ours / theirs", "predicted / measured, ours", "theirs")
    return [DUELS, markdown_table(headings, rows)]


def main() -> None:
    """Write calibration/ACCURACY.md."""
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    typer.run(main)
