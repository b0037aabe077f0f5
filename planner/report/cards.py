"""The same question answered for several cards, as a table."""

from rich.console import Console
from rich.text import Text

from planner.report.answer import METHODS, WORDS, method_words, model_words
from planner.report.console import print_hanging
from planner.report.table import Cell, Column, print_table
from planner.search.common_cards import CardAnswer
from planner.search.planning import Plan
from planner.units import format_bytes

COLUMNS = (
    Column("card"),
    Column(""),
    Column("method", rank=2),
    Column("batch", rank=4, justify="right"),
    Column("tokens", rank=6, justify="right"),
    Column("needs", rank=3, justify="right"),
    Column("of", rank=7, justify="right"),
    Column("tokens/s", rank=1, justify="right"),
    Column("USD/h", rank=5, justify="right"),
)


def print_cards(console: Console, plan: Plan) -> None:
    """Print one row for each of the cards of `plan`, and before that which of them would do."""
    answers = plan.cards
    doing = sum(answer.fits for answer in answers)
    word, style = WORDS[plan.verdict]
    where = f"{doing} of {len(answers)} common cards" if doing else f"none of {len(answers)} common cards"
    print_hanging(console, Text(f"{word}: ", style=style), f"{model_words(plan)} fits {where}.")
    console.print()
    print_table(console, COLUMNS, [_row(answer) for answer in answers])
    if plan.config is not None and plan.request.gpu is not None:
        price = plan.request.gpu.price
        rate = f" at about {price.median_usd_per_hour:.2f} USD/h" if price else ""
        console.print()
        sentence = f"{plan.request.gpu.name}{rate}, with {METHODS[plan.config.method]}."
        print_hanging(console, Text("The cheapest that does: "), sentence)


def _row(answer: CardAnswer) -> list[Cell]:
    candidate, gpu = answer.candidate, answer.gpu
    config = candidate.config
    word, style = WORDS[candidate.verdict]
    pace = candidate.tokens_per_second
    return [
        gpu.name,
        Text(word.lower(), style=style),
        method_words(config),
        f"{config.per_device_train_batch_size} x {config.gradient_accumulation_steps}" if answer.fits else "-",
        str(config.max_length),
        format_bytes(candidate.estimate.process_bytes),
        format_bytes(gpu.memory_bytes),
        f"{pace:,.0f}" if pace else "-",
        f"{gpu.price.median_usd_per_hour:.2f}" if gpu.price else "-",
    ]
