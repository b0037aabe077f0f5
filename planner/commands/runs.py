"""`fitune runs`: the runs recorded under a folder, predicted beside measured."""

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from planner.commands.options import Json
from planner.report.document import print_json
from planner.report.table import Cell, Column, print_table
from planner.run_record import RECORD_FILE
from planner.units import format_bytes
from profiles.errors import InputError

COLUMNS = (
    Column("run"),
    Column("model", rank=3),
    Column("card", rank=5),
    Column("ended", rank=4),
    Column("predicted", rank=1, justify="right"),
    Column("measured", justify="right"),
    Column("error", rank=1, justify="right"),
    Column("tokens/s", rank=2, justify="right"),
    Column("loss", rank=6, justify="right"),
)


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look, with all folders below it.")] = Path(
        "runs"
    ),
    json: Json = False,
) -> int:
    """List recorded runs, predicted and measured.

    Memory is that of live tensors.

    \b
    Examples:
      fitune runs
      fitune runs runs/mistral --json      every record, complete
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}", hint="`fitune launch` writes its runs to output_dir")
    records = [(path.parent, record) for path in sorted(folder.rglob(RECORD_FILE)) for record in _records(path)]
    if json:
        print_json({"runs": [{"folder": str(place), **record} for place, record in records]})
    elif records:
        from planner.report.console import data_console

        print_table(data_console(), COLUMNS, [_row(place, record) for place, record in records])
    else:
        sys.stderr.write(f"no run is recorded under {folder}\n")
    return 0


def last_record(folder: Path) -> dict[str, Any] | None:
    """The newest record of a run folder, or None. Raises InputError for a file that holds no records."""
    path = folder / RECORD_FILE
    return _records(path)[-1] if path.exists() else None


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        return [jsonlib.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except jsonlib.JSONDecodeError as error:
        raise InputError(f"{path} is not a record: {error}", hint="move it out of the folder") from error


def _row(place: Path, record: dict[str, Any]) -> list[Cell]:
    predicted = (record["predicted"] or {}).get("allocated_bytes")
    measured = record["measured"].get("allocated_bytes")
    tokens_per_second = record["measured"].get("tokens_per_second")
    loss = record["result"].get("loss")
    return [
        str(place),
        record["config"]["model"],
        record["environment"].get("gpu") or "CPU",
        _ended(record),
        format_bytes(predicted) if predicted else "-",
        format_bytes(measured) if measured else "-",
        f"{predicted / measured - 1:+.1%}" if predicted and measured else "-",
        f"{tokens_per_second:.0f}" if tokens_per_second else "-",
        f"{loss:.3f}" if loss is not None else "-",
    ]


def _ended(record: dict[str, Any]) -> str:
    """How the run ended, and how often memory did on the way."""
    restarts = len(record.get("recoveries", ()))
    times = "once" if restarts == 1 else f"{restarts} times"
    return f"{record['result']['status']}, restarted {times}" if restarts else str(record["result"]["status"])
