"""The runs of this machine as the page shows them: the folders that it was given, and the store."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from planner.picture.curve_picture import Curve, binary_step, curve_picture
from planner.picture.svg import svg
from planner.records.run_record import LOCK_FILE, LOG_FILE, RECORD_FILE, RunRecord, StoredRun
from planner.records.run_store import StoreError, recall, store_path
from planner.units import format_bytes, format_seconds
from profiles.errors import InputError

LOCKS = Path("/proc/locks")
WIDTH = 500
"""Pixels of a curve: two stand side by side."""

MOST_RUNS = 50
MOST_POINTS = 400


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run that ended: predicted beside measured."""

    place: str
    time: str
    model: str
    card: str
    status: str
    predicted: str
    measured: str
    error: str
    share: float | None
    tokens_per_second: str
    loss: str


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """A run by its log: its last figures and its curves. Without a record it goes on, or was cut off."""

    place: str
    running: bool
    recorded: bool
    step: int
    max_steps: int
    figures: tuple[tuple[str, str], ...]
    memory: str | None
    loss: str | None


@dataclass(frozen=True, slots=True)
class RunsView:
    """All runs, the newest first, and what could not be read; `past` are the logs of runs that ended."""

    live: tuple[LoggedRun, ...]
    past: tuple[LoggedRun, ...]
    ended: tuple[RunLine, ...]
    faults: tuple[str, ...]


def runs_view(folder: Path | None, with_store: bool) -> RunsView:
    """The runs under `folder`, and those of the store of this machine."""
    faults: list[str] = []
    ended = list(_records(folder, faults)) if folder else []
    if with_store:
        known = {(record.time, str(Path(place).absolute())) for place, record in ended}
        ended += [
            (run.folder or "imported", run.record)
            for run in _stored(faults)
            if (run.record.time, run.folder) not in known
        ]
    ended.sort(key=lambda found: found[1].time, reverse=True)
    logged = list(_logged(folder)) if folder else []
    live = tuple(run for run in logged if run.running or not run.recorded)
    past = tuple(run for run in logged if run not in live)
    return RunsView(live, past, tuple(_line(place, record) for place, record in ended[:MOST_RUNS]), tuple(faults))


def _records(folder: Path, faults: list[str]) -> Iterator[tuple[str, RunRecord]]:
    for path in sorted(folder.rglob(RECORD_FILE)):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield str(path.parent), RunRecord.parse(line)
            except InputError as error:
                faults.append(f"{path}: {error.message}")


def _stored(faults: list[str]) -> list[StoredRun]:
    path = store_path()
    try:
        return recall(path) if path else []
    except StoreError as error:
        faults.append(error.message)
        return []


def _line(place: str, record: RunRecord) -> RunLine:
    measured, predicted = record.measured.allocated_bytes, record.predicted and record.predicted.allocated_bytes
    error = predicted / measured - 1 if predicted and measured else None
    pace, loss = record.measured.tokens_per_second, record.result.loss
    return RunLine(
        place=place,
        time=record.time[:16].replace("T", " "),
        model=record.config.model,
        card=record.environment.gpu or "CPU",
        status=record.result.status,
        predicted=format_bytes(predicted) if predicted else "",
        measured=format_bytes(measured) if measured else "",
        error=f"{error:+.1%}" if error is not None else "",
        share=measured / predicted if predicted and measured else None,
        tokens_per_second=f"{pace:,.0f}" if pace else "",
        loss=f"{loss:.3f}" if loss is not None else "",
    )


def _logged(folder: Path) -> Iterator[LoggedRun]:
    """The runs that have a log, the newest first; a record that is older than the log is of a run before."""
    logs = sorted(folder.rglob(LOG_FILE), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in logs[:MOST_RUNS]:
        record = path.with_name(RECORD_FILE)
        running = _is_locked(path.with_name(LOCK_FILE))
        recorded = record.exists() and record.stat().st_mtime >= path.stat().st_mtime
        if lines := list(_log(path)):
            yield _logged_run(path.parent, running, recorded, lines)


def _log(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of the log since its run last began; one that is being written is left out."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if lines and line["step"] < lines[-1]["step"]:
            lines.clear()
        lines.append(line)
    yield from lines[:: max(1, len(lines) // MOST_POINTS)]


def _logged_run(folder: Path, running: bool, recorded: bool, lines: list[dict[str, Any]]) -> LoggedRun:
    last = lines[-1]
    figures = {
        "loss": f"{last['loss']:.3f}" if last["loss"] is not None else None,
        "tokens a second": f"{last['tokens_per_second']:,.0f}" if last["tokens_per_second"] else None,
        "peak": format_bytes(last["peak_bytes"]) if last["peak_bytes"] else None,
        "predicted": format_bytes(last["predicted_bytes"]) if last["predicted_bytes"] else None,
        "left": format_seconds(last["seconds_left"]) if running and last["seconds_left"] is not None else None,
        "last heard of": f"{datetime.fromisoformat(last['time']):%H:%M:%S} UTC",
    }
    return LoggedRun(
        place=str(folder),
        running=running,
        recorded=recorded,
        step=last["step"],
        max_steps=last["max_steps"],
        figures=tuple((name, value) for name, value in figures.items() if value is not None),
        memory=_memory_curves(lines),
        loss=_loss_curves(lines),
    )


def _memory_curves(lines: list[dict[str, Any]]) -> str | None:
    names = {
        "predicted": ("predicted_bytes", "faint"),
        "peak": ("peak_bytes", "stored"),
        "now": ("now_bytes", "weights"),
    }
    curves = [
        Curve(name, _points(lines, key), ink, dashed=name == "predicted")  # type: ignore[arg-type]
        for name, (key, ink) in names.items()
    ]
    curves = [curve for curve in curves if curve.points]
    picture = (
        curve_picture(curves, "step", lambda y: format_bytes(round(y)), width=WIDTH, y_step=binary_step)
        if curves
        else None
    )
    return svg(picture) if picture else None


def _loss_curves(lines: list[dict[str, Any]]) -> str | None:
    curves = [
        Curve("loss", _points(lines, "loss"), "work"),
        Curve("evaluation", _points(lines, "eval_loss"), "optimizer"),
    ]
    curves = [curve for curve in curves if curve.points]
    return svg(curve_picture(curves, "step", lambda y: f"{y:g}", width=WIDTH)) if curves else None


def _points(lines: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(line["step"], line[key]) for line in lines if line.get(key) is not None]


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a run folder. Asking the system leaves the lock alone."""
    try:
        inode = path.stat().st_ino
        return any(f":{inode} " in line for line in LOCKS.read_text().splitlines())
    except OSError:
        return False
