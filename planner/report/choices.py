"""What else could be run: the alternatives worth a look, and why the other configurations lost."""

import re
from collections.abc import Sequence

from rich.console import Console

from planner.config.run_config import RunConfig
from planner.report.answer import checkpoint_words, method_words
from planner.report.table import Column, print_table
from planner.search.planning import Plan
from planner.search.ranking import SAME_SPEED
from planner.units import format_bytes

SHOWN_ALTERNATIVES = 6
SHOWN_REASONS = 6
NUM_SETTINGS = 5

COLUMNS = (
    Column("method"),
    Column("batch", rank=4, justify="right"),
    Column("activations", rank=2),
    Column("optimizer", rank=5),
    Column("loss", rank=3),
    Column("needs", rank=1, justify="right"),
    Column("tokens/s", rank=6, justify="right"),
    Column("against the first", rank=7),
)


def print_alternatives(console: Console, plan: Plan) -> None:
    """Print the chosen configuration and, below it, those that trade something for speed or memory."""
    if plan.config is None or not plan.alternatives:
        return
    shown = plan.alternatives[:SHOWN_ALTERNATIVES]
    needs = plan.estimate.process_bytes
    rows = [[*_settings(plan.config), format_bytes(needs), _pace(plan.tokens_per_second), "chosen"]]
    for other in shown:
        against = _difference(other.estimate.process_bytes - needs, other.tokens_per_second, plan.tokens_per_second)
        size = format_bytes(other.estimate.process_bytes)
        rows.append([*_settings(other.config), size, _pace(other.tokens_per_second), against])
    console.print("\nWhat could be traded:")
    print_table(console, COLUMNS, _without_common_settings(rows))
    if len(shown) < len(plan.alternatives):
        console.print(f"  and {len(plan.alternatives) - len(shown)} more with --json")


def print_reasons(console: Console, plan: Plan) -> None:
    """Print how many configurations lost for each reason, with the words of one of them."""
    if not plan.losers:
        return
    kinds: dict[str, list[str]] = {}
    for loser in plan.losers:
        kinds.setdefault(_kind(loser.reason), []).append(loser.reason)
    ranked = sorted(kinds.values(), key=lambda reasons: -len(reasons))
    console.print(f"\nWhy {len(plan.losers):,} others lost:")
    rows = [[f"{len(reasons):,}", _example(reasons)] for reasons in ranked[:SHOWN_REASONS]]
    rest = sum(len(reasons) for reasons in ranked[SHOWN_REASONS:])
    if rest:
        rows.append([f"{rest:,}", "other reasons"])
    print_table(console, (Column("", justify="right"), Column("")), rows)


def print_losers(console: Console, plan: Plan) -> None:
    """Print every configuration that lost, one a line, with its reason."""
    console.print(f"\nThe {len(plan.losers):,} others:")
    for loser in plan.losers:
        console.print(f"  {', '.join(_settings(loser.config))}: {loser.reason}", soft_wrap=True)


def _without_common_settings(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """`rows` with settings that are the same in all of them left empty, which a table does not show."""
    common = {i for i in range(1, NUM_SETTINGS) if len({row[i] for row in rows}) == 1}
    return [["" if i in common else cell for i, cell in enumerate(row)] for row in rows]


def _settings(config: RunConfig) -> list[str]:
    batch = f"{config.per_device_train_batch_size} x {config.gradient_accumulation_steps}"
    loss = f"{config.loss}, reference asked before" if config.asks_reference_before else config.loss
    return [method_words(config), batch, checkpoint_words(config), config.optim, loss]


def _pace(tokens_per_second: float | None) -> str:
    return f"{tokens_per_second:,.0f}" if tokens_per_second else "-"


def _difference(num_bytes: int, pace: float | None, chosen_pace: float | None) -> str:
    memory = f"{'-' if num_bytes < 0 else '+'}{format_bytes(abs(num_bytes))}"
    if pace is None or not chosen_pace:
        return memory
    change = pace / chosen_pace - 1
    return f"{memory}, {'same speed' if abs(change) < SAME_SPEED else f'{change:+.0%}'}"


def _kind(reason: str) -> str:
    """A reason without its figures."""
    return re.sub(r"[\d.,]+ [KMGT]iB|[\d,]+(?: vs [\d,]+)? tokens|\d+%", "#", reason)


def _example(reasons: list[str]) -> str:
    return reasons[0] if len(set(reasons)) == 1 else f"{reasons[0]}, and the like"
