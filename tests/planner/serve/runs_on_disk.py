"""Run folders as the trainer leaves them."""

import json
from pathlib import Path

from planner.records.run_record import Environment, Measured, Prediction, Result, RunRecord
from planner.verbs.answers import can


def log_line(step: int, **figures: object) -> str:
    line = {"step": step, "max_steps": 40, "loss": 4.0 - step / 20, "learning_rate": 1e-4, "tokens_per_second": 1200.0}
    line |= {"now_bytes": 3 << 30, "peak_bytes": (4 << 30) + step, "predicted_bytes": 5 << 30, "seconds_left": 60.0}
    return json.dumps({"time": f"2026-11-28T04:{step:02}:00+00:00", **line, "eval_loss": None, **figures}) + "\n"


def record() -> RunRecord:
    return RunRecord(
        time="2026-11-27T10:00:00+00:00",
        config=can("7b", "t4").config,
        predicted=Prediction(allocated_bytes=10 << 30),
        measured=Measured(allocated_bytes=8 << 30, tokens_per_second=540.0),
        environment=Environment(gpu="Tesla T4", driver=None, cuda=None, python="3.11", platform="Linux", packages={}),
        result=Result(status="completed", steps=40, max_steps=40, loss=1.25, seconds=90.0),
    )


def make_runs(folder: Path) -> None:
    """A run that ended with a record, and one whose log goes on."""
    ended, live = folder / "runs" / "ended", folder / "runs" / "live"
    for place in (ended, live):
        place.mkdir(parents=True)
    (ended / "log.jsonl").write_text(log_line(40))
    (ended / "record.jsonl").write_text(record().model_dump_json() + "\n")
    (live / "log.jsonl").write_text("".join(log_line(step) for step in (1, 10, 20)))
