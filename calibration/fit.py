"""Fits the few constants that theory cannot give, from records and published runs, and writes `profiles/fitted.toml`.

python -m calibration.fit [--records FILE]... [--write] [--json]

Fitted are the shares of its rates that a card reaches, with the cost of unpacking 4-bit weights, what the allocator
holds beyond what is alive, and the CUDA context. What there is no measurement of is left as it is, and said.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from calibration.fitting.contexts import fit_contexts
from calibration.fitting.judged_runs import RUNS, JudgedRun, published_runs, recorded_runs
from calibration.fitting.memory_errors import MemoryErrors, memory_errors
from calibration.fitting.slack_shares import fit_slack
from calibration.fitting.speed import NAMES, expectations, fit_efficiencies, left_out_errors, unfitted
from calibration.fitting.timed_steps import TimedStep, length_words, published_steps, recorded_steps
from calibration.measuring.measurement import RECORDS, Measurement, read_measurements
from calibration.truth.measured_runs import read_runs
from profiles.errors import FituneError, InputError
from profiles.fitted import FITTED_FILE, Efficiencies, Fitted, fitted

WIDTH = 120


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a fit is made of: steps of known speed, and measurements by the file that they stand in."""

    steps: tuple[TimedStep, ...]
    measurements: Mapping[str, Sequence[Measurement]]


@dataclass(frozen=True, slots=True)
class ErrorLine:
    """The median error of the predicted tokens/s of some runs.

    Before any fit, as shipped (`before`), as fitted now (`after`), and by a fit without them.
    """

    gpu: str
    method: str
    tokens: str
    runs: int
    unfitted: float
    before: float
    after: float
    left_out: float

    @property
    def fitted(self) -> tuple[float, float, float]:
        """Before any fit, after it, and by a fit without these runs."""
        return self.unfitted, self.after, self.left_out


def gather(files: Iterable[Path]) -> Evidence:
    """The published steps and those of record files. Raises InputError for a file that holds something else."""
    measurements = {path.name: read_measurements(path) for path in files}
    recorded = (step for name, found in measurements.items() for step in recorded_steps(found, name))
    return Evidence((*published_steps(), *recorded), measurements)


def fit(evidence: Evidence) -> Fitted:
    """All that `evidence` tells."""
    return Fitted(
        speed=fit_efficiencies(evidence.steps),
        slack=fit_slack(judged_runs(evidence)),
        context=fit_contexts(evidence.measurements),
    )


def judged_runs(evidence: Evidence) -> list[JudgedRun]:
    """The published runs and those of the records, beside what is predicted for them."""
    recorded = (run for name, found in evidence.measurements.items() for run in recorded_runs(found, name))
    return [*published_runs(read_runs(RUNS)), *recorded]


def errors(evidence: Evidence, found: Fitted) -> list[ErrorLine]:
    """By card, method and length."""
    left_out = left_out_errors(evidence.steps, expectations())
    groups: dict[tuple[str, str, str], list[TimedStep]] = {}
    for one in evidence.steps:
        groups.setdefault((one.gpu.name, one.method, length_words(one.step.seq_len)), []).append(one)

    def error(step: TimedStep, constants: Efficiencies) -> float:
        return abs(step.predicted(constants) / step.tokens_per_second - 1)

    def of_card(step: TimedStep, constants: Fitted) -> float:
        return error(step, constants.efficiencies(step.gpu.name, step.dtype))

    return [
        ErrorLine(
            *key,
            runs=len(steps),
            unfitted=median(error(one, unfitted()) for one in steps),
            before=median(of_card(one, fitted()) for one in steps),
            after=median(of_card(one, found) for one in steps),
            left_out=median(abs(left_out[one]) for one in steps),
        )
        for key, steps in sorted(groups.items(), key=lambda item: (item[0][:2], int(item[0][2].split()[-1])))
    ]


def refusals(evidence: Evidence, found: Fitted) -> list[str]:
    """What cannot be fitted, and why."""
    said = []
    if not evidence.measurements:
        said.append("there are no records of this project's own; the speed is fitted on published runs alone")
    if not found.context:
        said.append(
            "the CUDA context is not fitted: no record has the process beside what torch reserved, so "
            "profiles/overheads.toml keeps what out-of-memory messages in public say"
        )
    unseen = sorted({"float16", "float32"} - {one.dtype for one in evidence.steps})
    if unseen:
        said.append(f"no run computes in {' or '.join(unseen)}: the shares of bfloat16 stand for it, unmeasured")
    said.append("cuBLAS workspaces are not fitted: torch's source states them")
    return said


def as_toml(found: Fitted) -> str:
    """The text of fitted.toml."""
    lines = ["# Made by `python -m calibration.fit --write`; nothing here is written by hand."]
    for one in found.speed:
        lines += ["", "[[speed]]", f'gpu = "{one.gpu}"', f'dtype = "{one.dtype}"']
        for name in NAMES:
            constant = getattr(one, name)
            lines.append(f"{name} = {{ value = {constant.value:g}, spread = {constant.spread:g} }}")
        lines += [f"error = {one.error:g}", f"error_left_out = {one.error_left_out:g}", *_named(one.runs, one.records)]
    for slack in found.slack:
        lines += ["", "[[slack]]", f'kind = "{slack.kind}"', f"value = {slack.value:g}", f"spread = {slack.spread:g}"]
        lines.append(f"error = {slack.error:g}")
        lines += [] if slack.error_left_out is None else [f"error_left_out = {slack.error_left_out:g}"]
        lines += _named(slack.runs, slack.records)
    for card in found.context:
        lines += ["", "[[context]]", f"gpu = {json.dumps(card.gpu)}", f"mib = {card.mib}"]
        lines.append(f"least_mib = {card.least_mib}")
        lines += [] if card.above_left_out_mib is None else [f"above_left_out_mib = {card.above_left_out_mib}"]
        lines += _named(card.runs, card.records)
    return "\n".join(lines) + "\n"


def _named(runs: int, records: Sequence[str]) -> list[str]:
    return [f"runs = {runs}", "records = [", *(f"  {json.dumps(record)}," for record in records), "]"]


def main(
    records: Annotated[
        list[Path] | None,
        typer.Option(help="Files that `fitune calibrate` wrote.", show_default="calibration/records/*.jsonl"),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Write profiles/fitted.toml.")] = False,
    as_data: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fit the constants that theory cannot give, and show the errors before and after."""
    try:
        missing = [path for path in records or () if not path.exists()]
        if missing:
            raise InputError(f"there is no file {missing[0]}", hint="`fitune calibrate` writes records")
        evidence = gather(records or sorted(RECORDS.glob("*.jsonl")))
    except FituneError as error:
        Console(stderr=True, highlight=False).print(f"error: {error.message}", markup=False)
        raise typer.Exit(error.exit_code) from error
    found = fit(evidence)
    lines, said, memory = errors(evidence, found), refusals(evidence, found), memory_errors(judged_runs(evidence))
    if as_data:
        typer.echo(json.dumps(_plain(found, lines, memory, said), indent=1))
    else:
        _print(Console(width=WIDTH), found, lines, memory, said)
    if write:
        FITTED_FILE.write_text(as_toml(found), "utf-8")
        typer.echo(f"{FITTED_FILE.name} is written", err=True)


def _plain(
    found: Fitted, lines: Sequence[ErrorLine], memory: Sequence[MemoryErrors], said: Sequence[str]
) -> dict[str, Any]:
    return {
        "fitted": found.model_dump(mode="json"),
        "errors": [asdict(line) for line in lines],
        "memory_errors": [asdict(line) for line in memory],
        "not_fitted": said,
    }


def _print(
    console: Console, found: Fitted, lines: Sequence[ErrorLine], memory: Sequence[MemoryErrors], said: Sequence[str]
) -> None:
    for one in found.speed:
        console.print(_constants(one))
    console.print(_slack(found))
    for card in found.context:
        left_out = (
            "" if card.above_left_out_mib is None else f", a model at most {card.above_left_out_mib} above the others"
        )
        console.print(f"context of {card.gpu}: {card.least_mib} to {card.mib} MiB in {card.runs} runs{left_out}")
    console.print(_memory(memory))
    console.print(_errors(lines))
    for sentence in said:
        console.print(f"note: {sentence}", highlight=False)


def _constants(one: Efficiencies) -> Table:
    place = "all cards" if one.gpu == "any" else f"{one.gpu}, {one.dtype}"
    table = Table("", "before", "after", "spread", title=f"Speed on {place}: {one.runs} runs")
    before = fitted().efficiencies(one.gpu, one.dtype)
    for name in NAMES:
        was, now = getattr(before, name), getattr(one, name)
        table.add_row(name, f"{was.value:.3g}", f"{now.value:.3g}", f"{now.spread:.0%}")
    table.add_row("error", f"{before.error:.1%}", f"{one.error:.1%}", "")
    table.add_row("error, groups left out", f"{before.error_left_out:.1%}", f"{one.error_left_out:.1%}", "")
    return table


def _slack(found: Fitted) -> Table:
    table = Table("where the peak is", title="Reserved beyond allocated memory, in shares of the activations")
    for column in ("before", "after", "spread", "error", "left out", "runs"):
        table.add_column(column, justify="right")
    for one in found.slack:
        before = f"{fitted().slack_share(one.kind):.3g}"
        left_out = "-" if one.error_left_out is None else f"{one.error_left_out:.1%}"
        errors = (f"{one.error:.1%}", left_out, str(one.runs))
        table.add_row(one.kind, before, f"{one.value:.3g}", f"{one.spread:.2g}", *errors)
    return table


def _memory(lines: Sequence[MemoryErrors]) -> Table:
    """Before: only the tensors; after: with workspaces, and for reserved memory with the allocator's slack."""
    table = Table("card", "method", "tokens", title="Predicted memory against measured, median error")
    for column in ("runs", "allocated, before", "after", "reserved, before", "after", "left out"):
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(line.card, line.method, line.tokens, str(line.runs), *line.shares)
    return table


def _errors(lines: Sequence[ErrorLine]) -> Table:
    table = Table("card", "method", "tokens", title="Predicted tokens/s against measured, median error")
    for column in ("runs", "before any fit", "as shipped", "fitted", "left out"):
        table.add_column(column, justify="right")
    for line in lines:
        shares = (f"{error:.1%}" for error in (line.unfitted, line.before, line.after, line.left_out))
        table.add_row(line.gpu, line.method, line.tokens, str(line.runs), *shares)
    return table


if __name__ == "__main__":
    typer.run(main)
