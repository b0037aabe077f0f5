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
from dataclasses import replace
from itertools import product
from urllib.parse import urlencode

from markupsafe import escape

import planner
from planner.config.run_file import run_file_text
from planner.report.answer import verdict_sentence
from planner.report.plan_document import plan_document
from planner.report.run_file_header import run_file_header
from planner.search.planning import Plan
from planner.search.ranking import Losers
from planner.units import format_bytes

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
        return json.load(response) == json.loads(json.dumps(plan_document(EXPECTED[question])))


def page(url: str, question: Question) -> bool:
    """Ask the page for its answer; whether its sentence, figures and run file are those of the planner."""
    query = urlencode(dict(zip(("model", "gpu", "max_length"), question, strict=True)))
    with urllib.request.urlopen(f"{url}/answer?{query}", timeout=60) as response:  # noqa: S310
        shown = response.read().decode()
    return all(part in shown for part in shown_of(EXPECTED[question]))


def options(url: str, question: Question) -> bool:
    """Ask the page what could be traded; whether it is what the planner knows."""
    query = urlencode(dict(zip(("model", "gpu", "max_length"), question, strict=True)))
    with urllib.request.urlopen(f"{url}/options/list?{query}", timeout=60) as response:  # noqa: S310
        shown = response.read().decode()
    needs = [format_bytes(option.estimate.process_bytes) for option in EXPECTED[question].alternatives]
    return all(f">{size}<" in shown for size in needs)


def shown_of(plan: Plan) -> list[str]:
    """What the page has to show of a plan."""
    low, high = (format_bytes(edge) for edge in plan.estimate.interval_bytes)
    parts = [verdict_sentence(plan), f"{low} to {high} of {format_bytes(plan.usable_bytes)}"]
    if plan.config is not None:
        parts.append(run_file_text(plan.config, run_file_header(plan, plan.config)))
    return [str(escape(part)) for part in parts]


def measure(name: str, ask: Callable[[str, Question], bool], url: str, users: int, asked: list[Question]) -> None:
    """Let `users` ask at once, and print how it went."""

    def timed(question: Question) -> tuple[float, bool]:
        start = time.perf_counter()
        right = ask(url, question)
        return time.perf_counter() - start, right

    start = time.perf_counter()
    with ThreadPoolExecutor(users) as pool:
        results = list(pool.map(timed, asked))
    seconds = time.perf_counter() - start
    times = sorted(duration for duration, _ in results)
    wrong = sum(not right for _, right in results)
    median, late, worst = statistics.median(times), times[round(0.95 * len(times)) - 1], times[-1]
    named = {"median": median, "95 %": late, "worst": worst}
    latencies = "   ".join(f"{name} {duration * 1e3:5.0f} ms" for name, duration in named.items())
    print(f"{name:14} {users:3} users {len(times) / seconds:6.1f} requests/s   {latencies}   {wrong} wrong")


EXPECTED: dict[Question, Plan] = {}


def questions(more: int) -> list[Question]:
    """Questions, whose right answers are kept; other ones for each number of `more` tokens."""
    asked = [(model, gpu, length + more) for model, gpu, length in product(MODELS, CARDS, LENGTHS)]
    for model, gpu, length in asked:
        EXPECTED[model, gpu, length] = replace(planner.can(model, gpu, max_length=length), losers=Losers())
    return asked


if __name__ == "__main__":
    sets = [questions(more) for more in range(4)]
    command = [sys.executable, "-m", "planner.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        address = re.search(r"http://\S+", server.stderr.readline())[0]
        try:
            measure("api", api, address, 1, sets[0])
            measure("api", api, address, USERS, sets[1])
            measure("page", page, address, 1, sets[2])
            measure("page", page, address, USERS, sets[3])
            measure("options", options, address, USERS, sets[3])
            measure("page, repeated", page, address, USERS, sets[3] * 5)
        finally:
            server.terminate()
