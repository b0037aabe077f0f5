"""Prints how long `fitune can` takes from a cold start, median of five: `python -m tests.benchmarks.answer_time`."""

import statistics
import subprocess
import sys
import time

QUESTIONS = (["can", "7b", "--gpu", "t4"], ["can", "7b", "--gpu", "t4", "--json"], ["can", "7b"], ["gpus"], ["models"])
REPEATS = 5
GOAL_SECONDS = 0.5


def seconds(argv: list[str]) -> float:
    """Wall time of one process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "planner.cli", *argv], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    for question in QUESTIONS:
        median = statistics.median(seconds(question) for _ in range(REPEATS))
        print(f"{median:.2f} s   {GOAL_SECONDS / median:.1f} x goal   fitune {' '.join(question)}")
