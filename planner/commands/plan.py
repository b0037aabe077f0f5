"""`fitune plan`: the best configuration for a model on a card, written as a run file."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from planner.asking.wishes import Wishes
from planner.commands.next_command import plan_command
from planner.commands.options import (
    BatchSize,
    Data,
    Gpu,
    Json,
    LoraR,
    MaxLength,
    MethodChoice,
    Nodes,
    NumGpus,
    ObjectiveChoice,
    OptionalModel,
    Plot,
    RecipeName,
    Rows,
    Settings,
)
from planner.commands.own_card import card_or_told
from planner.commands.plotting import check_plot, write_plot
from planner.commands.terminal import TERMINAL
from planner.config.run_config import RunConfig
from planner.config.settings import knobs_in
from planner.report.document import print_json
from planner.report.plan_document import losers_document, plan_document
from planner.search.planning import Plan
from planner.verbs.answers import best_plan, planned_request
from profiles.errors import ConfigError


def plan(
    model: OptionalModel = None,
    recipe: RecipeName = None,
    gpu: Gpu = None,
    num_gpus: NumGpus = None,
    nodes: Nodes = None,
    method: MethodChoice = "auto",
    objective: ObjectiveChoice = None,
    max_length: MaxLength = None,
    lora_r: LoraR = None,
    batch_size: BatchSize = None,
    data: Data = None,
    rows: Rows = None,
    settings: Settings = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="RUN_FILE", help="Write the configuration here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite RUN_FILE.")] = False,
    plot: Plot = None,
    explain: Annotated[bool, typer.Option("--explain", help="List every configuration that lost, and why.")] = False,
    json: Json = False,
) -> int:
    """Write the best configuration of MODEL that fits GPU.

    Beside it stand what else could be traded, and why the others lost.

    What you give is kept; the rest is searched: the least lossy base that fits, then the fastest.
    Without --gpu the plan is for this machine's card, or its CPU. Returns 1 if nothing fits.

    \b
    Examples:
      fitune plan mistralai/Mistral-7B-v0.1 --gpu t4 --data chats.jsonl -o run.yaml
      fitune plan llama2-7b --gpu 24GB --batch-size 32 --set optim=adamw_8bit --explain
      fitune plan --recipe zephyr-dpo --data pairs.jsonl -o run.yaml
    """
    if output is not None and output.exists() and not force:
        raise ConfigError(f"there is a file {output} already", hint="--force overwrites it")
    check_plot(plot)
    wishes = Wishes(
        method=method,
        objective=objective,
        max_length=max_length,
        lora_r=lora_r,
        batch_size=batch_size,
        data=data,
        rows=rows,
        num_gpus=num_gpus,
        num_nodes=nodes,
        knobs=knobs_in(settings or ()),
        recipe=recipe,
    )
    card = gpu if recipe or model is None else card_or_told(gpu)
    found = best_plan(planned_request(model, card, wishes, TERMINAL), TERMINAL)
    if output is not None and found.config is not None:
        _write(found, found.config, output)
    write_plot(found, plot)
    _show(found, explain, json, plan_command(found, wishes) if output is None else None)
    if output is not None:
        _say_where(found, output)
    return 1 if found.verdict == "no" else 0


def _show(found: Plan, explain: bool, json: bool, next_command: str | None) -> None:
    if json:
        print_json(plan_document(found) | {"losers": losers_document(found)})
    else:
        _print(found, explain, next_command)


def _print(found: Plan, explain: bool, next_command: str | None) -> None:
    from planner.report.answer import print_answer, print_next
    from planner.report.choices import print_alternatives, print_losers, print_reasons
    from planner.report.console import data_console

    console = data_console()
    print_answer(console, found)
    print_alternatives(console, found)
    if explain:
        print_losers(console, found)
    else:
        print_reasons(console, found)
    print_next(console, next_command)


def _write(found: Plan, config: RunConfig, output: Path) -> None:
    from planner.config.run_file import SCHEMA_FILE, SCHEMA_LINE, write_run_file
    from planner.report.run_file_header import run_file_header

    # Editors look for the schema in the first line.
    named = [SCHEMA_LINE] if output.with_name(SCHEMA_FILE).is_file() else []
    write_run_file(config, output, [*named, *run_file_header(found, config)])


def _say_where(found: Plan, output: Path) -> None:
    if found.config is None:
        sys.stderr.write(f"{output} is not written: nothing fits\n")
    else:
        sys.stderr.write(f"\n{output} is written. Next: fitune launch {output}\n")
