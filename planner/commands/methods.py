"""`fitune methods`: the methods of PEFT, what each trains on, and its options."""

import json as jsonlib
from typing import Annotated

import typer
from rich.console import Console

from planner.commands.options import Json
from planner.report.document import print_json
from planner.report.table import Cell, Column, print_table
from planner.verbs import facts
from profiles.peft_method import Base, Outcome, PeftMethod, peft_facts

BASES: dict[Base, str] = {"float32": "32-bit", "bfloat16": "16-bit", "int8": "int8", "nf4": "4-bit"}
"""Bases that were tried, and the headings under which they stand."""

COLUMNS = (
    Column("method"),
    Column("learns", rank=2),
    *(Column(heading, rank=1 if base == "float32" else 0) for base, heading in BASES.items()),
    Column("only with", rank=3),
)
OPTION_COLUMNS = (Column("option"), Column("takes", rank=2), Column("default", rank=1))


def methods(
    words: Annotated[
        str | None,
        typer.Argument(metavar="METHOD", help="A method, or part of its name.", show_default=False),
    ] = None,
    json: Json = False,
) -> int:
    """List the methods of PEFT that `method: peft` trains, and on which bases.

    Each was trained for a few steps on each base, saved and loaded again. A method alone is shown with its options and
    with a section for the run file.

    \b
    Examples:
      fitune methods
      fitune methods oft
      fitune methods --json      every option, and why a base does not work
    """
    if json:
        print_json(facts.methods(words))
        return 0
    found = facts.find_methods(words)
    from planner.report.console import data_console

    if words and len(found) == 1:
        _print_method(data_console(), found[0])
    else:
        print_table(data_console(), COLUMNS, [_row(method) for method in found])
    return 0


def _row(method: PeftMethod) -> list[Cell]:
    outcomes = [method.bases[base] for base in BASES]
    needs = {_needs(outcome): None for outcome in outcomes if outcome.needs}
    return [
        method.name,
        method.trains,
        *("yes" if outcome.works else "-" for outcome in outcomes),
        "; ".join(needs),
    ]


def _needs(outcome: Outcome) -> str:
    return ", ".join(f"{knob}: {_yaml(value)}" for knob, value in outcome.needs.items())


def _yaml(value: object) -> str:
    return value if isinstance(value, str) else jsonlib.dumps(value)


def _print_method(console: Console, method: PeftMethod) -> None:
    console.print(f"{method.name} (PEFT {peft_facts().peft_version}): learns in {method.trains}\n", highlight=False)
    for base, heading in BASES.items():
        outcome = method.bases[base]
        words = f"trains{', with ' + _needs(outcome) if outcome.needs else ''}" if outcome.works else outcome.reason
        console.print(f"  {heading:<8}{words}", highlight=False, soft_wrap=True)
    if method.works and not method.resumes:
        console.print("\nIt cannot go on from a checkpoint: a run has to end in one go.", highlight=False)
    console.print("\nIn a run file:\n\n  method: peft\n  peft:", highlight=False)
    options = {"type": method.name} | {name: method.example[name] for name in method.required}
    for name, value in options.items():
        console.print(f"    {name}: {_yaml(value)}", highlight=False, soft_wrap=True)
    console.print("\nIts options:")
    print_table(
        console,
        OPTION_COLUMNS,
        [
            [name, option.type, "needed" if name in method.required else _yaml(option.default)]
            for name, option in sorted(method.options.items())
        ],
    )
