"""What was found in a data file as one JSON object. `planner/README.md` lists its keys."""

from dataclasses import asdict
from typing import Any

from planner.data.inspection import guess_note, lengths_of
from planner.data.limits import limits, proposal
from planner.data.report import DataReport

PERCENTILES = (50, 90, 95, 99)


def data_document(report: DataReport, asked: int | None, num_positions: int | None) -> dict[str, Any]:
    """The report, with percentiles of the lengths and the effect of a max_length; without a row these are empty."""
    document = report.model_dump(mode="json") | {"lengths": None, "limits": [], "proposal": None}
    if not report.length_counts:
        return document
    lengths, proposed = lengths_of(report), proposal(report, num_positions)
    return document | {
        "lengths": {
            "counted": guess_note(report) is None,
            "num_tokens": lengths.num_tokens(lengths.longest),
            **{f"p{percent}": lengths.percentile(percent / 100) for percent in PERCENTILES},
            "max": lengths.longest,
        },
        "limits": [asdict(limit) for limit in limits(report, asked, proposed)],
        "proposal": asdict(proposed),
    }
