"""`fitune models`: the models in the catalog, and what is known of each."""

from typing import Annotated

import typer

from planner.commands.options import Json
from planner.report.document import print_json
from planner.report.table import Cell, Column, print_table
from planner.units import format_count
from planner.verbs import facts
from profiles.model import ModelProfile

COLUMNS = (
    Column("model"),
    Column("parameters", justify="right"),
    Column("layers", rank=2, justify="right"),
    Column("hidden", rank=3, justify="right"),
    Column("heads", rank=4, justify="right"),
    Column("vocab", rank=5, justify="right"),
    Column("context", rank=6, justify="right"),
    Column("also called", rank=1),
)
SHOWN_ALIASES = 2


def models(
    words: Annotated[
        str | None,
        typer.Argument(metavar="FILTER", help="Part of a name or of an architecture.", show_default=False),
    ] = None,
    json: Json = False,
) -> int:
    """List the models that are known without the Hub.

    \b
    Examples:
      fitune models
      fitune models qwen
      fitune models llama2-7b --json      every fact, with its source
    """
    if json:
        print_json(facts.models(words))
    else:
        from planner.report.console import data_console

        print_table(data_console(), COLUMNS, [_row(model) for model in facts.find_models(words)])
    return 0


def _row(model: ModelProfile) -> list[Cell]:
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    return [
        model.hf_id,
        format_count(facts.num_parameters(model)),
        str(model.num_hidden_layers + (model.num_decoder_layers or 0)),
        str(model.hidden_size),
        str(heads) if heads == kv_heads else f"{heads}/{kv_heads}",
        str(model.vocab_size),
        str(model.max_position_embeddings or "-"),
        ", ".join([alias for alias in model.aliases if "/" not in alias][:SHOWN_ALIASES]),
    ]
