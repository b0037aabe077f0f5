"""`fitune models`: the models in the catalog, and what is known of each."""

from dataclasses import asdict
from typing import Annotated

import typer

from planner.commands.options import Json
from planner.report.document import print_json
from planner.report.table import Cell, Column, print_table
from planner.units import format_count
from profiles.build_architecture import architecture
from profiles.errors import UnknownModelError
from profiles.model import ModelProfile
from profiles.model_catalog import all_models
from profiles.parameter_counts import parameter_counts

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
    found = [model for model in all_models() if words is None or _matches(model, words)]
    if not found:
        raise UnknownModelError(f"no model has '{words}' in its name or architecture", hint="`fitune models` lists all")
    found.sort(key=num_parameters)
    if json:
        print_json({"models": [_facts(model) for model in found]})
    else:
        from planner.report.console import data_console

        print_table(data_console(), COLUMNS, [_row(model) for model in found])
    return 0


def num_parameters(model: ModelProfile) -> int:
    """All parameters of `model`."""
    return parameter_counts(architecture(model)).total


def _facts(model: ModelProfile) -> dict[str, object]:
    counts = parameter_counts(architecture(model))
    return {**model.model_dump(mode="json"), "num_parameters": {"total": counts.total, **asdict(counts)}}


def _matches(model: ModelProfile, words: str) -> bool:
    return any(words.casefold() in name.casefold() for name in (model.hf_id, model.model_type, *model.aliases))


def _row(model: ModelProfile) -> list[Cell]:
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    return [
        model.hf_id,
        format_count(num_parameters(model)),
        str(model.num_hidden_layers + (model.num_decoder_layers or 0)),
        str(model.hidden_size),
        str(heads) if heads == kv_heads else f"{heads}/{kv_heads}",
        str(model.vocab_size),
        str(model.max_position_embeddings or "-"),
        ", ".join([alias for alias in model.aliases if "/" not in alias][:SHOWN_ALIASES]),
    ]
