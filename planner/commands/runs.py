"""`fitune runs`: the runs of this machine, predicted beside measured; to give away and to take in."""

import json as jsonlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from planner.commands.options import Json
from planner.records.run_record import RECORD_FILE, StoredRun
from planner.report.document import print_json
from planner.report.table import Cell, Column, print_table
from planner.units import format_bytes
from profiles.errors import FituneError, InputError

USUAL_FOLDER = Path("runs")

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
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER",
            help="Where to look, with all folders below it; without it, in runs/ and in the store of this machine.",
            show_default=False,
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="FILE", help="Write the runs of the store to FILE, to share them.", show_default=False
        ),
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option(
            "--import",
            metavar="FILE",
            help="Take shared runs of others into the store, after checks.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> int:
    """List recorded runs, predicted and measured.

    The memory shown is the peak of live tensors, which torch calls allocated.

    Each launch is recorded in its run folder and in a store of this machine, ~/.local/share/fitune/runs.db. Set
    FITUNE_STORE to use another file, or to an empty string to keep no store. Answers about the same card and method
    learn from the store.

    --export leaves out paths, prompts, losses, host names and the names of models that are not in the catalogue.
    --import checks each run: whether the card is known and has such memory, and whether what was measured is near
    what is predicted.

    \b
    Examples:
      fitune runs
      fitune runs runs/mistral --json      every record, complete
      fitune runs --export mine.jsonl
      fitune runs --import theirs.jsonl
    """
    if export is not None and import_ is not None:
        raise InputError("--export and --import are two things", hint="use one after the other")
    if folder is not None and (export is not None or import_ is not None):
        raise InputError(f"FOLDER is {folder}, but --export and --import are about the store", hint="leave it out")
    if export is not None:
        return _export(export, json)
    if import_ is not None:
        return _import(import_, json)
    return _list(folder, json)


def last_record(folder: Path) -> dict[str, Any] | None:
    """The newest record of a run folder, or None. Raises InputError for a file that holds no records."""
    path = folder / RECORD_FILE
    return _records(path)[-1] if path.exists() else None


def stored_runs() -> list[StoredRun]:
    """All runs of the store, oldest first; none if there is no store. Raises StoreError."""
    from planner.records.run_store import recall, store_path

    path = store_path()
    return recall(path) if path else []


def _list(folder: Path | None, json: bool) -> int:
    if folder is not None and not folder.is_dir():
        raise InputError(f"there is no folder {folder}", hint="`fitune launch` writes its runs to output_dir")
    place = folder or USUAL_FOLDER
    found = [(str(path.parent), record) for path in sorted(place.rglob(RECORD_FILE)) for record in _records(path)]
    if folder is None:
        found += _only_stored(found)
    if json:
        print_json({"runs": [{"folder": where, **record} for where, record in found]})
    elif found:
        from planner.report.console import data_console

        print_table(data_console(), COLUMNS, [_row(where, record) for where, record in found])
    else:
        sys.stderr.write(f"no run is recorded under {place}\n" if folder else "no run is recorded here\n")
    return 0


def _only_stored(found: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """What the store has beyond the runs that were `found` in folders; nothing, with a word, if it cannot be read."""
    try:
        stored = stored_runs()
    except FituneError as error:
        sys.stderr.write(f"note: {error.message}\n")
        return []
    listed = {(record.get("time"), str(Path(where).absolute())) for where, record in found}
    return [
        (_place(run), run.record.model_dump(mode="json"))
        for run in stored
        if run.origin != "calibration" and (run.record.time, run.folder) not in listed
    ]


def _place(run: StoredRun) -> str:
    """Where a stored run is, as short as it can be said."""
    if run.folder is None:
        return "imported"
    here = Path.cwd()
    folder = Path(run.folder)
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        return [jsonlib.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except jsonlib.JSONDecodeError as error:
        raise InputError(f"{path} is not a record: {error}", hint="move it out of the folder") from error


def _row(place: str, record: dict[str, Any]) -> list[Cell]:
    predicted = (record["predicted"] or {}).get("allocated_bytes")
    measured = record["measured"].get("allocated_bytes")
    tokens_per_second = record["measured"].get("tokens_per_second")
    loss = record["result"].get("loss")
    return [
        place,
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


def _export(path: Path, json: bool) -> int:
    """Write the store's own runs to a file that must not exist yet."""
    from planner.records.contribution import to_give_away

    lines, left_out = [], []
    for run in stored_runs():
        if run.origin != "own":
            continue
        try:
            lines.append(to_give_away(run).model_dump_json())
        except InputError as error:
            left_out.append({"time": run.record.time, "why": error.message})
    if not lines and not left_out:
        raise InputError("the store has no run of this machine", hint="`fitune launch` leaves one")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    except FileExistsError:
        raise InputError(f"{path} is there already", hint="name a new file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    if json:
        print_json({"file": str(path), "exported": len(lines), "left_out": left_out})
        return 0
    for one in left_out:
        sys.stderr.write(f"left out: the run of {one['time']}: {one['why']}\n")
    sys.stdout.write(f"{_count(len(lines))} written to {path}; read it before you give it away\n")
    return 0


def _import(path: Path, json: bool) -> int:
    """Take the runs of a file into the store; 2 if none of them can be believed."""
    from planner.records.contribution import read_contributions
    from planner.records.run_store import STORE_VARIABLE, remember, store_path

    store = store_path()
    if store is None:
        raise InputError(f"{STORE_VARIABLE} is empty, so there is no store", hint="unset it, or name a file in it")
    found, refused = read_contributions(path)
    added = remember(found, store) if found else 0
    if json:
        told = [{"line": one.line, "why": one.why} for one in refused]
        print_json({"imported": added, "known": len(found) - added, "refused": told})
    else:
        for one in refused:
            sys.stderr.write(f"refused: {path}, line {one.line}: {one.why}\n")
        known = len(found) - added
        there = f", {known} {'was' if known == 1 else 'were'} there already" if known else ""
        sys.stdout.write(f"{_count(added)} imported{there}\n")
    return 2 if refused and not found else 0


def _count(number: int) -> str:
    return f"{number} run{'' if number == 1 else 's'}"
