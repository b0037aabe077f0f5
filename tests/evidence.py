"""Prints what shows that the predictions are right, each with its target: `make evidence`, or

python -m tests.evidence [--fresh] [--json]

Predictions by tracing are those that are kept (`calibration/traced.json`); `--fresh` traces again what the code or the
libraries may have changed. What is not as it should be is printed as such.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from calibration.compare import WIDTH, as_kept, by_trace, compare
from calibration.errors_page import EXPLAINED_FROM, RUNS, TRACED
from calibration.truth.error_table import (
    IN_A_RACE,
    IN_ORDER,
    Comparison,
    Metric,
    Skipped,
    by_loading,
    errors_of,
    reasons,
    summarize,
    within_race,
)
from calibration.truth.kept_traces import KeptTraces
from calibration.truth.measured_runs import read_runs
from calibration.truth.misses import explained_rows
from planner.config.run_config import LoraKnobs, RunConfig
from planner.memory.estimate import estimate
from planner.report.console import notes_console
from planner.search.ranking import search
from planner.search.request import Request
from planner.step.resolve import resolve_step
from profiles.build_architecture import architecture
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model

EXACT = ("estimate", "7b", "--gpu", "t4", "--method", "lora", "--exact")


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that is to be shown: what is wanted, what was found, and whether that is as wanted."""

    item: int
    what: str
    target: str
    found: str
    holds: bool


Found = tuple[list[Comparison], list[Skipped]]


def accuracy_claims(traced: Found, formulas: Found) -> Iterator[Claim]:
    """Items 1 to 5, from all shipped runs by tracing and by the closed form."""
    traces, closed = (_of_one_card(found[0]) for found in (traced, formulas))
    for item, way, rows, limits in (
        (1, "trace", traces, ((0.003, 0.015), (0.015, 0.06))),
        (2, "closed form", closed, ((0.01, 0.04), (0.025, 0.08))),
    ):
        fused = [one for one in rows if one.run.attention != "eager" and one.error_of("allocated") is not None]
        stated = [one for one in fused if one.run.harness == "FIT"]
        inferred = [one for one in fused if one.run.harness != "FIT"]
        yield _accuracy(item, f"allocated by {way}, every knob stated (FIT)", stated, "allocated", limits[0])
        yield _accuracy(item, f"allocated by {way}, others (FMS)", inferred, "allocated", limits[1])
        if way == "trace":
            yield _explained(item, [one for one in rows if one.run.attention == "eager"])
    for way, rows, limits_of_way in (("simulation", traces, (0.015, 0.08)), ("closed form", closed, (0.03, 0.10))):
        reserved = [one for one in rows if one.run.harness != "PEFT"]
        yield _accuracy(3, f"reserved by {way}", reserved, "reserved", limits_of_way)
    yield from _by_loading(traces)
    yield from _method_comparison(traced)
    for way, found in (("trace", traced), ("closed form", formulas)):
        yield from _verdicts(way, found)


def _by_loading(traces: Sequence[Comparison]) -> Iterator[Claim]:
    """Reserved memory where weights came in order, and the range of it where threads of the loader raced."""
    groups = by_loading(traces)
    yield _accuracy(3, "of these, loaded one weight after the other", groups[IN_ORDER], "reserved", (0.015, 0.08))
    raced = groups[IN_A_RACE]
    inside = sum(map(within_race, raced))
    yield Claim(
        3,
        "of these, loaded by threads that race (Transformers 5.0): reserved within what these can come to",
        f"{len(raced)} of {len(raced)}",
        f"{inside} of {len(raced)}",
        inside == len(raced),
    )


def _of_one_card(compared: Sequence[Comparison]) -> list[Comparison]:
    return [one for one in compared if one.run.num_gpus == 1]


def _accuracy(
    item: int, what: str, compared: Sequence[Comparison], metric: Metric, limits: tuple[float, float]
) -> Claim:
    errors = errors_of(compared, metric)
    assert errors.median_abs_error is not None
    assert errors.p95_abs_error is not None
    return Claim(
        item,
        f"{what}, {errors.rows} runs",
        f"median {limits[0]:.1%}, 95th percentile {limits[1]:.1%}",
        f"{errors.median_abs_error:.2%}, {errors.p95_abs_error:.2%}",
        errors.median_abs_error <= limits[0] and errors.p95_abs_error <= limits[1],
    )


def _explained(item: int, eager: Sequence[Comparison]) -> Claim:
    off = [one.run.id for one in eager if abs(one.error_of("allocated") or 0) > EXPLAINED_FROM["allocated"]]
    unexplained = [run_id for run_id in off if run_id not in explained_rows("allocated")]
    return Claim(
        item,
        f"eager attention, {len(eager)} runs: those more than 3 % off are explained",
        "0 unexplained",
        f"{len(off)} off, {len(unexplained)} unexplained",
        not unexplained,
    )


def _method_comparison(traced: Found) -> Iterator[Claim]:
    compared = [one for one in traced[0] if one.run.harness == "PEFT"]
    skipped = [skip for skip in traced[1] if skip.id.startswith("PEFT-")]
    errors = errors_of(compared, "reserved")
    assert errors.median_abs_error is not None
    yield Claim(
        4,
        f"methods of PEFT by trace, {errors.rows} runs",
        "median 5.0%",
        f"{errors.median_abs_error:.2%}",
        errors.median_abs_error <= 0.05,
    )
    for why, ids in reasons(skipped).items():
        yield Claim(4, f"not traced: {', '.join(ids)}", "named with the reason", why, bool(why))


def _verdicts(way: str, found: Found) -> Iterator[Claim]:
    summary = summarize(*found)
    ran = sum(one.run.fits == "yes" for one in found[0])
    failed = len(found[0]) - ran
    yield Claim(
        5, f"runs out of memory called fits, by {way}", "0", f"{summary.false_fits} of {failed}", not summary.false_fits
    )
    share = summary.false_refusals / ran
    yield Claim(5, f"runs that ran called no, by {way}", "at most 5.0%", f"{share:.1%} of {ran}", share <= 0.05)


def time_claims() -> Iterator[Claim]:
    """Item 6: processes from a cold start, and one call."""
    for what, argv, limit in (
        ("fitune can, cold", ("can", "7b", "--gpu", "t4"), 0.5),
        ("fitune estimate --exact of 7B, cold", EXACT, 12.0),
    ):
        wall, busy = _seconds(argv, repeats=3 if limit < 1 else 1)
        yield Claim(6, what, f"{limit:g} s", f"{wall:.2f} s, {busy:.2f} s of a CPU", wall <= limit)
    for what, seconds in (
        ("closed form, a candidate of a search", candidate_seconds()),
        ("closed form, a length not asked for before", estimate_seconds()),
    ):
        yield Claim(6, what, "100 us", f"{seconds * 1e6:.0f} us", seconds <= 100e-6)


def _seconds(argv: Sequence[str], repeats: int) -> tuple[float, float]:
    """Wall and CPU time of the fastest of some processes."""
    found = []
    for _ in range(repeats):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "planner.cli", *argv], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append((time.perf_counter() - start, busy))
    return min(found)


def candidate_seconds() -> float:
    """CPU time of a search over the number of configurations that it judges, of a model not asked for before."""
    gpu = find_gpu("t4")
    search(Request(find_model("7b"), gpu))
    start = time.process_time()
    result = search(Request(find_model("llama3.1-8b"), gpu))
    return (time.process_time() - start) / result.num_candidates


def estimate_seconds(calls: int = 200) -> float:
    """CPU time of one estimate of a step that was not asked for before, its architecture known."""
    model, gpu = find_model("7b"), find_gpu("t4")
    config = RunConfig(model=model.hf_id, method="lora", lora=LoraKnobs(), dtype="float16", mixed_precision="fp16")
    steps = [
        resolve_step(config.model_copy(update={"max_length": 128 + length}), model, gpu, "fitune")
        for length in range(calls)
    ]
    estimate(model, steps.pop(), gpu)
    start = time.process_time()
    for step in steps:
        estimate(model, step, gpu)
    return (time.process_time() - start) / len(steps)


def real_step_claims(progress: Callable[[str], None]) -> Iterator[Claim]:
    """Item 7: steps of tiny models on this CPU, each tensor counted."""
    # torch takes seconds to import.
    from tests.planner.memory.real_step import measured_peak
    from tests.planner.memory.test_real_steps import LOOPS, MODELS, STEPS, small

    for name in MODELS:
        progress(name)
        model, errors = small(name), []
        targets = tuple(sorted({linear.name for linear, _ in architecture(model).linears()}))
        for case, step in STEPS.items():
            if (name, case) == LOOPS:
                continue
            asked = replace(step, adapter=step.adapter and replace(step.adapter, targets=targets))
            with TemporaryDirectory() as folder:
                measured = measured_peak(model, asked, Path(folder))
            errors.append(abs(estimate(model, asked, None).allocated_bytes / measured - 1))
        what = f"real steps of a tiny {name}, {len(errors)} kinds"
        found = f"{statistics.median(errors):.2%}, {max(errors):.2%}"
        yield Claim(7, what, "median and worst 1.0%", found, max(errors) <= 0.01)


def found_traces(fresh: bool) -> Found:
    """What traces of the shipped runs predict."""
    kept = KeptTraces(TRACED)
    return compare(read_runs(RUNS), partial(by_trace if fresh else as_kept, kept=kept))


def main(
    fresh: Annotated[bool, typer.Option("--fresh", help="Trace again what may have changed: minutes.")] = False,
    as_data: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print all that shows that the predictions are right; exit code 1 if something is not as it should be."""
    console, notes = Console(width=None if sys.stdout.isatty() else WIDTH), notes_console()
    claims = [*accuracy_claims(found_traces(fresh), compare(read_runs(RUNS))), *time_claims()]
    with notes.status("a step of a tiny model") as status:
        claims += real_step_claims(lambda name: status.update(f"steps of a tiny {name}"))
    if as_data:
        typer.echo(json.dumps([asdict(claim) for claim in claims], indent=1))
    else:
        console.print(_table(claims))
        console.print(_where_from())
    raise typer.Exit(int(not all(claim.holds for claim in claims)))


def _table(claims: Iterable[Claim]) -> Table:
    table = Table("", "what", "wanted", "found", "", title="Evidence")
    item = 0
    for claim in claims:
        if claim.item != item:
            table.add_section()
            item = claim.item
        table.add_row(str(claim.item), claim.what, claim.target, claim.found, "ok" if claim.holds else "MISSED")
    return table


def _where_from() -> str:
    versions = KeptTraces(TRACED).tracers().values()
    texts = sorted({", ".join(f"{name} {version}" for name, version in found.items()) for found in versions})
    return f"Traced with {' and with '.join(texts)}; run by run in calibration/ERRORS.md."


if __name__ == "__main__":
    typer.run(main)
