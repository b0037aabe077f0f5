"""`fitune recipes`: settings that are known to work, and where they come from."""

from typing import Annotated

import typer

from planner.commands.options import Json
from planner.report.document import print_json
from planner.report.table import Cell, Column, print_table
from planner.verbs import facts
from profiles.recipe import Recipe

COLUMNS = (
    Column("recipe"),
    Column("model", rank=1),
    Column("card", rank=2),
    Column("method", rank=3),
    Column("tokens", rank=4, justify="right"),
    Column("for", rank=5),
)
KNOB_COLUMNS = (Column("knob"), Column("value"), Column("from", rank=1))


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Show this one: each setting, and where it comes from.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> int:
    """List published settings to plan with.

    `fitune plan --recipe NAME` fits one to your card and data: its settings stay, the rest is chosen.

    \b
    Examples:
      fitune recipes
      fitune recipes zephyr-dpo
      fitune plan --recipe zephyr-dpo --data pairs.jsonl -o run.yaml
    """
    if json:
        print_json(facts.recipes(name))
        return 0
    found = facts.find_recipes(name)
    from planner.report.console import data_console

    if name:
        _print_one(found[0])
    else:
        print_table(data_console(), COLUMNS, [_row(recipe) for recipe in found])
    return 0


def _row(recipe: Recipe) -> list[Cell]:
    method = recipe.method if recipe.objective == "sft" else f"{recipe.objective}, {recipe.method}"
    return [recipe.name, recipe.model, recipe.gpu, method, str(recipe.max_length), recipe.about]


def _print_one(recipe: Recipe) -> None:
    from planner.report.answer import print_facts
    from planner.report.console import data_console

    console = data_console()
    examples = "pairs" if recipe.objective == "dpo" else "rows"
    console.print(f"{recipe.name}: {recipe.about}\n", soft_wrap=True)
    facts = [
        ("model", f"{recipe.model}; `fitune plan MODEL --recipe {recipe.name}` plans another one"),
        ("card", f"{recipe.gpu}; --gpu plans for another one"),
        ("data", f"rows of the form {recipe.data}, up to {recipe.max_length} tokens"),
        ("how", f"{recipe.objective}, {recipe.method}, {recipe.batch_size} {examples} a step"),
        ("source", recipe.source),
    ]
    print_facts(console, facts)
    console.print()
    rows = [[*knob.set.split("=", 1), knob.why] for knob in recipe.knobs]
    print_table(console, KNOB_COLUMNS, rows)
    console.print(f"\nNext: fitune plan --recipe {recipe.name} --data DATA.jsonl -o run.yaml")
