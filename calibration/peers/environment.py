"""The peers' own packages in a folder of their own, so that files can be held to their schemas.

`python -m calibration.peers.environment` builds it. Peers pin versions that contradict each other, but their schemas
import beside the libraries of this project when they come without dependencies.
"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from profiles.errors import EnvironmentFault

HERE = Path(__file__).parent
PINS = HERE / "peers.txt"
FOLDER = HERE.parents[1] / ".venv-peers"
STAMP = "pins"


def peer_environment(folder: Path = FOLDER) -> Path:
    """The folder with the packages of `peers.txt`, installed if it is not there or other ones are.

    Safe for several processes at once. Raises EnvironmentFault where the package index cannot be reached.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pins = hashlib.sha256(PINS.read_bytes()).hexdigest()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / STAMP
        if not stamp.exists() or stamp.read_text("utf-8") != pins:
            _install(folder)
            stamp.write_text(pins, encoding="utf-8")
    return folder


def _install(folder: Path) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade", "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "install", *options, "-r", str(PINS)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        why = next((line for line in reversed(run.stderr.splitlines()) if "ERROR" in line), "pip failed")
        raise EnvironmentFault(f"the packages of {PINS.name} cannot be installed: {why}", hint="is there a network?")


def ask_schema(peer: str, arguments: Sequence[str], folder: Path | None = None) -> object:
    """What `schemas.py` answers about files, or with `--keys`, in a process with the peers on its path."""
    path = os.pathsep.join(filter(None, [str(folder or peer_environment()), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE / "schemas.py"), peer, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["no output"])[-1]
        raise EnvironmentFault(f"the schema of {peer} cannot be imported: {last}")
    answer: object = json.loads(run.stdout.strip().splitlines()[-1])
    return answer


if __name__ == "__main__":
    sys.stdout.write(f"{peer_environment()}\n")
