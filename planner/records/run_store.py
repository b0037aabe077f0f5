"""The store of runs: every run that was launched on this machine, and those that were imported, in one SQLite file.

Several processes may write at once. Nothing that is wrong with the file may stop a run or a plan: every failure is a
StoreError, which callers tell of and go on.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from planner.records.run_record import Origin, RunRecord, StoredRun, method_of
from profiles.errors import RunError
from profiles.model import ModelProfile

STORE_VARIABLE = "FITUNE_STORE"
"""Variable that names another file; set to nothing, no run is remembered."""

VERSION = 1
SCHEMA = (
    """CREATE TABLE IF NOT EXISTS runs (
        digest TEXT PRIMARY KEY, time TEXT NOT NULL, card TEXT NOT NULL, method TEXT NOT NULL, origin TEXT NOT NULL,
        folder TEXT, shape TEXT, record TEXT NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS runs_by_card ON runs (card, method, time)",
    f"PRAGMA user_version = {VERSION}",
)
PATIENCE_SECONDS = 10.0
"""How long a process waits for another one that writes."""


class StoreError(RunError):
    """The store cannot be read or written."""


def store_path() -> Path | None:
    """The file of the store: FITUNE_STORE, or in the user's data folder; None if runs are not to be remembered."""
    named = os.environ.get(STORE_VARIABLE)
    if named is not None:
        return Path(named).expanduser() if named else None
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "fitune" / "runs.db"


def remember(runs: Sequence[StoredRun], path: Path) -> int:
    """Keep `runs` in the store at `path`, which is made if there is none; how many of them are new.

    They are on the disk when this returns, all or none. A damaged file is set aside first. Raises StoreError.
    """
    rows = [_row(run) for run in runs]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _insert(path, rows)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            _set_aside(path)
            return _insert(path, rows)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"the store of runs {path} cannot be written: {error}") from error


def recall(path: Path, newest: int | None = None) -> list[StoredRun]:
    """The runs in the store at `path`, oldest first; with `newest` only so many of each card and method, imported ones
    only where there are fewer of this machine's.

    None where there is no such file. Records of another version of fitune that cannot be read any more are left out.
    Raises StoreError.
    """
    if not path.exists():
        return []
    place = "ROW_NUMBER() OVER (PARTITION BY card, method ORDER BY origin = 'imported', time DESC)"
    columns = "origin, card, folder, shape, record"
    query = f"SELECT {columns} FROM (SELECT *, {place} AS place FROM runs) WHERE place <= ? ORDER BY time"  # noqa: S608
    try:
        with contextlib.closing(_reader(path)) as connection:
            rows = connection.execute(query, (newest or 2**62,)).fetchall()
    except sqlite3.Error as error:
        hint = f"the next run puts it aside as {path.name}.damaged" if _is_damage(error) else None
        raise StoreError(f"the store of runs {path} cannot be read: {error}", hint) from error
    return list(_runs(rows))


def _is_damage(error: sqlite3.Error) -> bool:
    """The subclasses of DatabaseError say that the file is locked or may not be written, but not that it is damaged."""
    return type(error) is sqlite3.DatabaseError


def _insert(path: Path, rows: Sequence[tuple[object, ...]]) -> int:
    with contextlib.closing(sqlite3.connect(path, timeout=PATIENCE_SECONDS, isolation_level=None)) as connection:
        _check_version(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # One writer at a time from the first statement on, so that none is refused half-way.
        connection.execute("BEGIN IMMEDIATE")
        for statement in SCHEMA:
            connection.execute(statement)
        before = connection.total_changes
        connection.executemany("INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        added = connection.total_changes - before
        connection.execute("COMMIT")
    return added


def _set_aside(path: Path) -> None:
    path.replace(path.with_name(f"{path.name}.damaged"))
    for journal in ("-wal", "-shm"):
        path.with_name(path.name + journal).unlink(missing_ok=True)


def _check_version(connection: sqlite3.Connection) -> None:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found > VERSION:
        raise sqlite3.OperationalError(f"it has version {found}, this fitune knows up to {VERSION}; update fitune")


def _reader(path: Path) -> sqlite3.Connection:
    """A connection that writes nothing; where even its lock cannot be written, one that takes the file as it is."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=PATIENCE_SECONDS)
    try:
        _check_version(connection)
    except sqlite3.OperationalError:
        connection.close()
        connection = sqlite3.connect(f"{uri}&immutable=1", uri=True)
        _check_version(connection)
    return connection


def _row(run: StoredRun) -> tuple[object, ...]:
    shape = run.shape.model_dump_json(exclude_defaults=True) if run.shape else None
    record = run.record
    facts = (run.digest, record.time, run.card, method_of(record.config), run.origin, run.folder)
    return (*facts, shape, record.model_dump_json())


def _runs(rows: Sequence[tuple[Origin, str, str | None, str | None, str]]) -> Iterator[StoredRun]:
    for origin, card, folder, shape, record in rows:
        with contextlib.suppress(ValidationError):
            profile = ModelProfile.model_validate_json(shape) if shape else None
            yield StoredRun(RunRecord.model_validate_json(record), profile, card, origin, folder)
