"""Where the constants come from: tables for a page."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calibration.fitting.contexts import seen_contexts
from planner.report.markdown import markdown_table
from planner.speed.rates import speed_facts
from profiles.fitted import FITTED_FILE, fitted
from profiles.overheads import overheads
from profiles.slack import simulated_slack

PROFILES = FITTED_FILE.parent
SAID = ("source", "note", "notes")
UNMEASURED = ("unmeasured", "not measured", "assumed", "guess", "not looked up")


def constants_table() -> str:
    """The kinds of constants, where each comes from, and how well it is known."""
    facts, speed = overheads(), speed_facts()
    simulated = simulated_slack()
    slack = ", ".join(f"{one.kind} {one.value:g}" for one in fitted().slack)
    cards = [name for row in facts.context.cards for name in row.names[:1]]
    measured = sum(len(row.gpus) for row in speed.products.measured)
    rows = (
        ("grain and segments of the allocator", "source of torch", "exact"),
        ("cuBLAS workspaces", "source of torch", "exact"),
        ("weights, gradients, states, activations", "counted from the code of the libraries", "see Memory"),
        (
            "slack of the allocator beside the passes",
            f"{simulated.steps} simulated steps",
            f"reserved memory of those: {simulated.median_error:.1%}, models left out: {simulated.left_out_error:.1%}",
        ),
        (f"slack of the allocator: {slack}", "published runs, fitted", "see below"),
        ("range around the prediction", "published runs", "see The range"),
        (f"CUDA context of {', '.join(cards)}", "messages in public", "each from one to a few messages"),
        ("CUDA context of other cards", "messages in public about their generation", "the high end; else unmeasured"),
        (f"memory of NCCL: {facts.context.nccl_mib} MiB", "messages in public", "rough"),
        (f"rates of matrix products of {measured} cards", "published benchmarks", "one benchmark each"),
        (
            f"the same of other cards: {speed.products.unmeasured_share} of the data sheet",
            "least of the measured ones",
            "unmeasured",
        ),
        ("shares of the rates, launches", "fitted on published runs of one A100", "other cards: unmeasured"),
        ("cost of unpacking 4-bit weights", "fitted with them", "the runs hardly tell: see its spread"),
        (
            f"link to the host: {speed.host_link.bytes_per_s / 1e9:g} GB/s",
            "PCIe 3.0 less overhead, the slowest",
            "unmeasured",
        ),
    )
    return markdown_table(("constant", "from", "how well it is known"), rows)


def slack_table() -> str:
    """The slack that is fitted on published runs."""
    rows = [
        (
            one.kind,
            f"{one.value:g}",
            f"{one.spread:g}",
            f"{one.error:.1%}",
            "-" if one.error_left_out is None else f"{one.error_left_out:.1%}",
            str(one.runs),
        )
        for one in fitted().slack
    ]
    return markdown_table(
        ("slack, where the peak is", "value", "spread", "error of reserved", "left out", "runs"), rows
    )


def context_table() -> str:
    """The CUDA context of cards of which messages were seen, in MiB."""
    rows = [
        (
            one.seen.card,
            str(one.seen.messages),
            _range(*one.seen.mib),
            str(one.planned_mib),
            str(one.left_out_mib),
        )
        for one in seen_contexts()
    ]
    return markdown_table(("card", "messages", "seen", "planned", "left out"), rows)


def _range(least: int, most: int) -> str:
    return f"at most {most}" if least == 0 else str(most) if least == most else f"{least} to {most}"


def unmeasured_table() -> str:
    """Every constant of which its data file says that nobody measured it, and what else it says."""
    rows = [(path.name, key, words) for path in sorted(PROFILES.glob("*.toml")) for key, words in _unmeasured(path)]
    return markdown_table(("file", "constant", "what is known"), rows)


def _unmeasured(path: Path) -> Iterator[tuple[str, str]]:
    for key, words in _said(tomllib.loads(path.read_text("utf-8")), ()):
        if any(word in words for word in UNMEASURED):
            yield key, words


def _said(value: object, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every remark in a file, with the table that it stands in."""
    if isinstance(value, Mapping):
        table: Mapping[str, Any] = value
        for key, inner in table.items():
            if key in SAID and isinstance(inner, str):
                yield ".".join(keys), inner
            else:
                yield from _said(inner, (*keys, key))
    elif isinstance(value, list):
        for inner in value:
            yield from _said(inner, keys)
