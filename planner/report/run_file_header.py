"""What a run file says above its knobs: for what it was planned, and what is predicted of it."""

from datetime import date

from planner.config.run_config import RunConfig
from planner.report.answer import size_words
from planner.search.planning import Plan
from planner.units import format_bytes


def run_file_header(plan: Plan, config: RunConfig) -> list[str]:
    """The lines of comment over `config`, which `plan` chose."""
    memory, usable, card = plan.estimate, format_bytes(plan.usable_bytes), config.gpu or "the CPU"
    pace = f" About {plan.tokens_per_second:,.0f} tokens/s." if plan.tokens_per_second else ""
    header = [
        f"fitune plan of {date.today().isoformat()}: {config.model} on {card}.",
        f"Predicted: {size_words(memory)} of {usable}, the peak in the {memory.binding_phase} phase.{pace}",
        *plan.notes,
    ]
    if config.data is None:
        header.append("Before a launch, name the training data: data: {path: FILE}")
    return header
