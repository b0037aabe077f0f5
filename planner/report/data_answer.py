"""What was found in a data file, for people: what is wrong, how long the rows are, what of them is learned."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from planner.data.inspection import guess_note, lengths_of
from planner.data.limits import Limit, limits, proposal
from planner.data.report import DataReport, Finding
from planner.report.answer import print_facts
from planner.report.console import print_hanging
from planner.report.data_document import PERCENTILES
from planner.report.data_preview import print_preview
from planner.report.table import Column, print_table
from planner.units import format_count

SHOWN_REJECTED = 10
SHOWN_PLACES = 3

LIMIT_COLUMNS = (
    Column("max_length", justify="right"),
    Column("rows cut", justify="right"),
    Column("rows dropped", rank=2, justify="right"),
    Column("tokens kept", rank=1, justify="right"),
)


def print_data(console: Console, report: DataReport, asked: int | None, num_positions: int | None) -> None:
    """Print the verdict on a file, then what it rests on."""
    _print_verdict(console, report)
    _print_rejected(console, report.rejected)
    _print_odd(console, report)
    if report.length_counts:
        _print_lengths(console, report, asked, num_positions)
    if report.preview:
        console.print()
        print_preview(console, report.preview)
    notes = list(report.remarks)
    if note := guess_note(report):
        notes.insert(0, f"{note}; {'--download fetches the tokenizer' if report.model else '--model counts them'}")
    if notes:
        console.print()
    for one in notes:
        print_hanging(console, Text("note: ", style="dim"), one)


def _print_verdict(console: Console, report: DataReport) -> None:
    rows = f"{report.path}: {_rows(report.num_rows)} in the format {report.format}; "
    if report.rejected:
        lead = Text("No: ", style="bold red")
        print_hanging(
            console, lead, f"{rows}{len(report.rejected):,} cannot be trained on, so a launch would refuse it."
        )
    elif report.odd:
        print_hanging(console, Text("Yes: ", style="bold green"), f"{rows}all can be trained on, but look below.")
    else:
        print_hanging(console, Text("Yes: ", style="bold green"), f"{rows}all can be trained on.")


def _print_rejected(console: Console, rejected: Sequence[Finding]) -> None:
    if not rejected:
        return
    console.print("\nCannot be trained on:")
    width = max(len(finding.place) for finding in rejected[:SHOWN_REJECTED])
    for finding in rejected[:SHOWN_REJECTED]:
        print_hanging(console, Text(f"  {finding.place:<{width}}  ", style="dim"), finding.what)
    if len(rejected) > SHOWN_REJECTED:
        console.print(f"  and {len(rejected) - SHOWN_REJECTED:,} more with --json")


def _print_odd(console: Console, report: DataReport) -> None:
    if not report.odd:
        return
    console.print("\nCan be trained on, but is rarely meant:")
    width = max(len(f"{len(found):,}") for found in report.odd.values())
    for kind, found in report.odd.items():
        print_hanging(console, Text(f"  {len(found):>{width},}  {kind}: "), Text(_places(found), style="dim"))


def _places(found: Sequence[Finding]) -> str:
    first = found[0]
    others = ", ".join(finding.place for finding in found[1:SHOWN_PLACES])
    more = " ..." if len(found) > SHOWN_PLACES else ""
    return f"{first.place}, {first.what}" + (f"; also {others}{more}" if others else "")


def _print_lengths(console: Console, report: DataReport, asked: int | None, num_positions: int | None) -> None:
    lengths, proposed = lengths_of(report), proposal(report, num_positions)
    about = "" if report.unit == "tokens" else "about "
    most = ", ".join(f"{percent}% up to {lengths.percentile(percent / 100):,}" for percent in PERCENTILES)
    console.print()
    print_facts(
        console,
        [
            ("learned", _learned(report)),
            ("tokens", f"{about}{format_count(lengths.num_tokens(lengths.longest))}"),
            ("rows", f"{about}{most}, the longest {lengths.longest:,}"),
            ("max_length", f"{proposed.max_length}: {proposed.why}"),
        ],
    )
    console.print()
    rows = [
        _limit_row(limit, lengths.num_rows, lengths.num_tokens(lengths.longest))
        for limit in limits(report, asked, proposed)
    ]
    print_table(console, LIMIT_COLUMNS, rows)


def _learned(report: DataReport) -> str:
    if report.unit == "characters":
        return report.learned
    missing = len(report.odd.get("stop token not learned", ()))
    if report.stop_tokens and not missing:
        return f"{report.learned}, up to and with the stop token {' or '.join(report.stop_tokens)}"
    if report.stop_tokens:
        return f"{report.learned}; in {_rows(missing)} without a token that stops generation at its end"
    return f"{report.learned}, but never a token that stops generation: the model would not learn to end an answer"


def _limit_row(limit: Limit, num_rows: int, num_tokens: int) -> list[str]:
    dropped = "" if limit.num_dropped is None else f"{limit.num_dropped:,}"
    cut = f"{limit.num_cut:,} ({limit.num_cut / num_rows:.1%})" if limit.num_cut else "0"
    return [str(limit.max_length), cut, dropped, f"{limit.num_tokens / num_tokens:.1%}"]


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
