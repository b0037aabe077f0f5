"""How the server holds up: `python -m tests.benchmarks.serving`. Prints requests a second, latencies, wrong answers."""

import json
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from urllib.parse import urlencode

import planner

USERS = 50
MODELS = ("7b", "13b", "llama3.1-8b", "qwen2.5-7b", "phi-2")
CARDS = ("T4", "24GB", "A100-SXM4-80GB", "H100-SXM5-80GB")
LENGTHS = (512, 1024, 1536, 2048, 4096)

Question = tuple[str, str, int]


def api(url: str, question: Question) -> bool:
    """Ask the API; whether the answer is the right one."""
    model, gpu, length = question
    body = json.dumps({"model": model, "gpu": gpu, "max_length": length}).encode()
    request = urllib.request.Request(f"{url}/api/can", body, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        return json.load(response)["estimate"]["process_bytes"] == EXPECTED[question]


def page(url: str, question: Question) -> bool:
    """Ask the page for its answer; whether it is one."""
    query = urlencode(dict(zip(("model", "gpu", "max_length"), question, strict=True)))
    with urllib.request.urlopen(f"{url}/answer?{query}", timeout=60) as response:  # noqa: S310
        return b'id="verdict"' in response.read()


def measure(name: str, ask: Callable[[str, Question], bool], url: str, users: int) -> None:
    """Let `users` ask all questions at once, and print how it went."""

    def timed(question: Question) -> tuple[float, bool]:
        start = time.perf_counter()
        right = ask(url, question)
        return time.perf_counter() - start, right

    start = time.perf_counter()
    with ThreadPoolExecutor(users) as pool:
        results = list(pool.map(timed, QUESTIONS))
    seconds = time.perf_counter() - start
    times = sorted(duration for duration, _ in results)
    wrong = sum(not right for _, right in results)
    median, late, worst = statistics.median(times), times[round(0.95 * len(times)) - 1], times[-1]
    named = {"median": median, "95 %": late, "worst": worst}
    latencies = "   ".join(f"{name} {duration * 1e3:5.0f} ms" for name, duration in named.items())
    print(f"{name:5} {users:3} users {len(times) / seconds:6.1f} requests/s   {latencies}   {wrong} wrong")


QUESTIONS = list(product(MODELS, CARDS, LENGTHS))
EXPECTED: dict[Question, int] = {}

if __name__ == "__main__":
    for model, gpu, length in QUESTIONS:
        EXPECTED[model, gpu, length] = planner.can(model, gpu, max_length=length).estimate.process_bytes
    command = [sys.executable, "-m", "planner.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        address = re.search(r"http://\S+", server.stderr.readline())[0]
        for users in (1, USERS):
            measure("api", api, address, users)
            measure("page", page, address, users)
        server.terminate()
