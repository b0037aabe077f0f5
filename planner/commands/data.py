"""`fitune data`: what stands in a data file, before a run is spent on it."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from planner.commands.options import Json, MaxLength, complete_model
from planner.config.run_config import DataFormat
from planner.data.inspection import inspect_data
from planner.data.report import DataReport
from planner.report.document import print_json
from profiles.errors import FituneError


def data(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A .jsonl, .json, .csv or .parquet file, or a folder that `datasets` saved.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="The model whose tokenizer counts: a folder or a Hub id.",
            autocompletion=complete_model,
        ),
    ] = None,
    max_length: MaxLength = None,
    data_format: Annotated[
        DataFormat,
        typer.Option(
            "--format", metavar="FORMAT", help=f"{', '.join(get_args(DataFormat))}; auto looks at the columns."
        ),
    ] = "auto",
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=0, help="Rows to show as the model reads them.")] = 3,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the model's tokenizer from the Hub if it is not here.")
    ] = False,
    json: Json = False,
) -> int:
    """Look at every row of FILE: what would be refused, cut, or learned by mistake.

    Shows the format, the rows that cannot be trained on with their line numbers, the lengths in tokens, what a
    max_length would cut and which one to take, and the first rows as the model reads them: text, tokens, and what
    counts in the loss. Without --model tokens are guessed from characters. Returns 1 if a row cannot be trained on.

    \b
    Examples:
      fitune data chats.jsonl
      fitune data chats.jsonl --model mistralai/Mistral-7B-v0.1 --max-length 2048
      fitune data chats.jsonl --model runs/fitune/final --json
    """
    from planner.report.progress import progress_bar

    with progress_bar(f"reading {file.name}") as on_progress:
        report = inspect_data(
            file,
            model,
            data_format=data_format,
            max_length=max_length,
            download=download,
            preview=rows,
            on_progress=on_progress,
        )
    _print(report, max_length, _num_positions(model), json)
    return 1 if report.rejected else 0


def _print(report: DataReport, max_length: int | None, num_positions: int | None, json: bool) -> None:
    if json:
        from planner.report.data_document import data_document

        print_json(data_document(report, max_length, num_positions))
    else:
        from planner.report.console import data_console
        from planner.report.data_answer import print_data

        print_data(data_console(), report, max_length, num_positions)


def _num_positions(model: str | None) -> int | None:
    """Positions of the model; None if nothing is known of it."""
    if model is None:
        return None
    from profiles.model_catalog import resolve_model

    try:
        return resolve_model(model).profile.max_position_embeddings
    except FituneError:
        return None
