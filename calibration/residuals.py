"""The spread of measured reserved memory around the closed form, and how often a range made of it held.

python -m calibration.residuals [--records FILE]... [--write] [--json]

From the runs on one card that state everything (grade A) and have reserved memory: published ones, and records. Rows
of a nearly full card (grade B) are left out of the fit, because there the allocator holds what pressure leaves it, and
kept in the check.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist, fmean, median, stdev
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from calibration.fitting.judged_runs import RUNS, JudgedRun, published_runs, recorded_runs
from calibration.measuring.measurement import RECORDS, read_measurements
from calibration.truth.measured_runs import read_runs
from planner.memory.verdict import Verdict
from planner.search.common_cards import COMMON_CARDS
from profiles.errors import FituneError
from profiles.fitted import AttentionKind
from profiles.gpu_catalog import find_gpu
from profiles.residuals import ANY, RESIDUALS_FILE, MeasuredCard, Residuals, Spread, residuals

CONFIDENCE = 0.99
FEWEST = 10
"""Runs of a method below which it takes the spread of all methods."""

DIGITS = 3


def fitted(runs: Sequence[JudgedRun]) -> Residuals:
    """The spreads of those of `runs` that publish reserved memory and are not of several cards or a nearly full one."""
    alone = [one for one in runs if one.num_gpus == 1]
    used = [one for one in alone if one.share is not None and one.exact]
    spreads = []
    for attention in get_args(AttentionKind):
        alike = [one for one in used if one.attention == attention]
        for method in (ANY, *sorted({one.method for one in alike})):
            of_method = [one for one in alike if method in (ANY, one.method)]
            if len(of_method) >= (2 if method == ANY else FEWEST):
                spreads.append(_spread(method, attention, of_method))
    return Residuals(source="", unmeasured=_between_cards(used), spreads=tuple(spreads), cards=_cards(alone))


def _spread(method: str, attention: AttentionKind, runs: Sequence[JudgedRun]) -> Spread:
    """The larger of the largest residual seen and of what the next run stays below with 99 % confidence.

    The latter is the prediction interval of a normal variable of which mean and deviation are only known from these
    runs: mean + t deviation sqrt(1 + 1 / n).
    """
    shares = [one.share for one in runs if one.share is not None]
    reach = student_t(CONFIDENCE, len(shares) - 1) * stdev(shares) * math.sqrt(1 + 1 / len(shares))
    return Spread(
        method=method,
        attention=attention,
        high=round(max(*shares, fmean(shares) + reach), DIGITS),
        runs=len(shares),
        groups=tuple(sorted({one.group for one in runs})),
    )


def student_t(confidence: float, freedom: int) -> float:
    """The quantile of Student's t, by the expansion in 1 / freedom (Abramowitz and Stegun 26.7.5).

    Within 1 % of the tables from 3 degrees of freedom on at 99 %.
    """
    z = NormalDist().inv_cdf(confidence)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / float(freedom) ** power for power, term in enumerate(terms))


def _between_cards(runs: Sequence[JudgedRun]) -> float:
    """The largest difference between the middles of cards with fused attention: what another card may add."""
    fused = [one for one in runs if one.attention == "fused"]
    cards = {one.gpu for one in fused}
    middles = [median(one.share for one in fused if one.gpu == card and one.share is not None) for card in cards]
    return round(max(middles) - min(middles), DIGITS) if middles else 0.0


def _cards(runs: Sequence[JudgedRun]) -> tuple[MeasuredCard, ...]:
    """The cards on which something was measured, by method."""
    ran = [one for one in runs if one.ran]
    found = []
    for gpu in sorted({one.gpu.name: one.gpu for one in ran}.values(), key=lambda gpu: gpu.name):
        methods = [one.method for one in ran if one.gpu.name == gpu.name]
        assert gpu.compute_capability is not None
        counts = {method: methods.count(method) for method in sorted(set(methods))}
        found.append(MeasuredCard(name=gpu.name, compute_capability=gpu.compute_capability, runs=counts))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Coverage:
    """How a range held for some runs when it was made of all others.

    `inside` and `below` are shares of the runs with reserved memory: within the range, and not above its high end.
    `pairs` are these runs and the common cards: of those called fits, how many have room for what was measured, and of
    those called no, how many have not. `out_of_memory` counts verdicts of runs that ran out; `above` names the runs
    above the high end.
    """

    group: str
    runs: int
    inside: float
    below: float
    called_fits: int
    had_room: int
    called_no: int
    had_none: int
    out_of_memory: dict[Verdict, int]
    above: tuple[str, ...]


def coverage(runs: Sequence[JudgedRun], group_of: Callable[[JudgedRun], str]) -> list[Coverage]:
    """One line for each group, predicted with the spreads of the others, and last one for all of them together."""
    groups = sorted({group_of(one) for one in runs})
    ranges: dict[str, Residuals] = {group: fitted([one for one in runs if group_of(one) != group]) for group in groups}
    lines = [_coverage(group, [one for one in runs if group_of(one) == group], ranges, group_of) for group in groups]
    return [*lines, _coverage("all", runs, ranges, group_of)]


def _coverage(
    name: str, runs: Sequence[JudgedRun], ranges: dict[str, Residuals], group_of: Callable[[JudgedRun], str]
) -> Coverage:
    measured = [one for one in runs if one.reserved_bytes is not None]
    processes = [(one.reserved_bytes or 0) + one.gpu.context_bytes for one in measured]
    intervals = [one.range_with(ranges[group_of(one)]) for one in measured]
    inside = sum(low <= size <= high for size, (low, high) in zip(processes, intervals, strict=True))
    above = [one.id for one, size, (_, high) in zip(measured, processes, intervals, strict=True) if size > high]
    pairs = [pair for one in measured for pair in _on_common_cards(one, ranges[group_of(one)])]
    failed = [one for one in runs if not one.ran]
    verdicts = [_verdict(one.range_with(ranges[group_of(one)]), one.gpu.memory_bytes) for one in failed]
    total = max(len(measured), 1)
    return Coverage(
        group=name,
        runs=len(measured),
        inside=inside / total,
        below=1 - len(above) / total,
        called_fits=sum(said == "fits" for said, _ in pairs),
        had_room=sum(said == "fits" and room for said, room in pairs),
        called_no=sum(said == "no" for said, _ in pairs),
        had_none=sum(said == "no" and not room for said, room in pairs),
        out_of_memory={said: verdicts.count(said) for said in get_args(Verdict)},
        above=tuple(above),
    )


def _on_common_cards(one: JudgedRun, spreads: Residuals) -> Iterator[tuple[Verdict, bool]]:
    """What is said of the run on each of the common cards, and whether there is room for what was measured."""
    for gpu in map(find_gpu, COMMON_CARDS):
        room = (one.reserved_bytes or 0) + gpu.context_bytes <= gpu.memory_bytes
        yield _verdict(one.range_with(spreads, gpu), gpu.memory_bytes), room


def _verdict(interval: tuple[int, int], usable: int) -> Verdict:
    low, high = interval
    return "fits" if high <= usable else "tight" if low <= usable else "no"


def as_toml(found: Residuals) -> str:
    """The text of residuals.toml."""
    lines = [
        "# Made by `python -m calibration.residuals --write`; nothing here is written by hand.",
        "# How far a run may lie above the reserved memory that the closed form says, in shares of its activations:",
        f"# the larger of the most seen and of what the next run stays below with {CONFIDENCE:.0%} confidence.",
        f"source = {json.dumps(found.source)}",
        f"unmeasured = {found.unmeasured}  # largest difference between the middles of cards",
    ]
    for spread in found.spreads:
        lines += ["", "[[spreads]]", *(f"{key} = {json.dumps(value)}" for key, value in spread.model_dump().items())]
    for card in found.cards:
        facts = card.model_dump(exclude={"runs"})
        counts = ", ".join(f"{method} = {count}" for method, count in card.runs.items())
        lines += ["", "[[cards]]", *(f"{key} = {json.dumps(value)}" for key, value in facts.items())]
        lines.append(f"runs = {{ {counts} }}")
    return "\n".join(lines) + "\n"


def now_fitted(records: Sequence[Path] | None = None) -> tuple[list[JudgedRun], Residuals]:
    """The shipped runs, those of `records` (None: all that are kept), and what they come to with the formulas of now.

    Raises InputError for a file that holds something else.
    """
    files = sorted(RECORDS.glob("*.jsonl")) if records is None else records
    recorded = [one for path in files for one in recorded_runs(read_measurements(path), path.name)]
    runs = [*published_runs(read_runs(RUNS)), *recorded]
    found = fitted(runs)
    used = sum(spread.runs for spread in found.spreads if spread.method == ANY)
    sources = ", ".join(("calibration/truth/runs.csv", *(path.name for path in files)))
    return runs, found.model_copy(update={"source": f"{sources}: {used} runs on one card with reserved memory"})


GROUPINGS: dict[str, Callable[[JudgedRun], str]] = {
    "who measured": lambda one: one.group,
    "card": lambda one: one.gpu.name,
    "method": lambda one: one.method,
}


def main(
    records: Annotated[
        list[Path] | None,
        typer.Option(help="Files that `fitune calibrate` wrote.", show_default="calibration/records/*.jsonl"),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Write profiles/residuals.toml.")] = False,
    as_data: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the spread of measured runs around the closed form, and how often a range made of other runs held."""
    try:
        runs, found = now_fitted(records)
    except FituneError as error:
        Console(stderr=True, highlight=False).print(f"error: {error.message}", markup=False)
        raise typer.Exit(error.exit_code) from error
    if write:
        RESIDUALS_FILE.write_text(as_toml(found), "utf-8")
    tables = {name: coverage(runs, group_of) for name, group_of in GROUPINGS.items()}
    if as_data:
        typer.echo(json.dumps({"residuals": found.model_dump(mode="json"), "coverage": _plain(tables)}, indent=1))
        return
    console = Console(width=120)
    _print_spreads(console, found)
    for name, lines in tables.items():
        console.print(_coverage_table(name, lines))
    if not write and found != residuals():
        console.print("profiles/residuals.toml is older than the formulas; --write remakes it")


def _plain(tables: dict[str, list[Coverage]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [asdict(line) for line in lines] for name, lines in tables.items()}


def _print_spreads(console: Console, found: Residuals) -> None:
    table = Table("method", "attention", "runs", "at most", "measured by", title="Residuals, shares of activations")
    for one in found.spreads:
        texts = (one.method, one.attention, str(one.runs), f"{one.high:+.2f}", ", ".join(one.groups))
        table.add_row(*texts)
    console.print(table)
    console.print(f"a card that was not measured: {found.unmeasured:.2f} more")


def _coverage_table(name: str, lines: Sequence[Coverage]) -> Table:
    table = Table(title=f"Each {name} predicted with the spreads of the others")
    columns = ("left out", "runs", "in range", "below its end", "called fits", "had room", "called no", "had none")
    for column in (*columns, "ran out: fits, tight, no"):
        table.add_column(column, justify="left" if column == "left out" else "right")
    for line in lines:
        verdicts = ", ".join(str(line.out_of_memory[said]) for said in get_args(Verdict))
        counts = (line.called_fits, line.had_room, line.called_no, line.had_none)
        shares = (f"{line.inside:.0%}", f"{line.below:.0%}") if line.runs else ("-", "-")
        table.add_row(line.group, str(line.runs), *shares, *map(str, counts), verdicts)
    return table


if __name__ == "__main__":
    typer.run(main)
