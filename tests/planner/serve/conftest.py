"""A real `fitune serve` on a port of its own, in a folder with one finished and one stopped run."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from planner.run_record import Environment, Measured, Prediction, Result, RunRecord
from planner.verbs import can

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Served:
    """Where a server answers, and the folder in which it was started."""

    url: str
    folder: Path

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        return self._open(urllib.request.Request(self.url + path, headers=headers))  # noqa: S310

    def post(self, path: str, document: object) -> tuple[int, object]:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, body, kind)  # noqa: S310
        status, text = self._open(request)
        return status, json.loads(text)

    @staticmethod
    def _open(request: urllib.request.Request) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


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


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    make_runs(folder)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FITUNE_STORE": "", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "planner.cli", "serve", "--port", "0"],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process:
        said = process.stderr.readline()
        address = re.search(r"http://\S+", said)
        assert address, said + process.stderr.read()
        yield Served(address[0], folder)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
