"""What a `max_length` does to the rows of a data file, and which one to take."""

from dataclasses import dataclass

from planner.data.inspection import lengths_of
from planner.data.lengths import DataLengths, ProposedLength, proposed_length
from planner.data.report import DataReport

SHORTEST = 512


@dataclass(frozen=True, slots=True)
class Limit:
    """At `max_length`: rows that lose their end, rows of which nothing that is learned remains, and the tokens kept.

    `num_dropped` is None where tokens could not be counted.
    """

    max_length: int
    num_cut: int
    num_dropped: int | None
    num_tokens: int


def limits(report: DataReport, asked: int | None, proposal: ProposedLength) -> tuple[Limit, ...]:
    """The effect of 512, 1024, ... up to the first that cuts nothing, and of the lengths asked for and proposed."""
    lengths = lengths_of(report)
    tried = [SHORTEST]
    while tried[-1] < lengths.longest:
        tried.append(2 * tried[-1])
    wanted = {*tried, proposal.max_length, *([asked] if asked else [])}
    return tuple(_limit(report, lengths, max_length) for max_length in sorted(wanted))


def proposal(report: DataReport, num_positions: int | None) -> ProposedLength:
    """The length to train with, for a model of this many positions (None: not known, or no limit)."""
    return proposed_length(lengths_of(report), num_positions)


def _limit(report: DataReport, lengths: DataLengths, max_length: int) -> Limit:
    starts = report.answer_start_counts
    dropped = None if starts is None else sum(count for start, count in starts if start >= max_length)
    return Limit(max_length, lengths.num_cut(max_length), dropped, lengths.num_tokens(max_length))
