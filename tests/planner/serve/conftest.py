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

from tests.planner.serve.runs_on_disk import make_runs

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
