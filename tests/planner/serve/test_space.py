"""The one file of a Hugging Face Space starts a server that a Space can show."""

import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[3]
DOCKERFILE = re.search(r"```dockerfile\n(.*?)```", (ROOT / "docs" / "page.md").read_text(), re.DOTALL)[1]


def test_what_the_file_starts_answers_under_the_name_of_a_space():
    program, *arguments = json.loads(re.search(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[1])
    assert program == "fitune"
    assert arguments[-2:] == ["--port", "7860"]
    command = [sys.executable, "-m", "planner.cli", *arguments[:-1], "0"]
    environment = os.environ | {"HOME": "/nonexistent", "FITUNE_STORE": ""}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT) as server:
        try:
            port = re.search(r"http://0\.0\.0\.0:(\d+)", server.stderr.readline())[1]
            asked = urllib.request.Request(f"http://127.0.0.1:{port}/?model=7b&gpu=T4")
            asked.add_header("Host", "owner-fitune.hf.space")
            with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310
                assert "fits one T4 with LoRA" in answer.read().decode()
                # A Space is shown in a frame of another page.
                assert "frame-ancestors" not in answer.headers["Content-Security-Policy"]
                assert "X-Frame-Options" not in answer.headers
        finally:
            server.terminate()


def test_the_file_installs_what_the_server_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = re.search(r"'fitune\[(\w+)\] @ https://", DOCKERFILE)[1]
    assert any(package.startswith("fastapi") for package in project["optional-dependencies"][extra])
