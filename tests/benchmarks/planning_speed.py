"""How long planning takes, beside the goals: `PYTHONPATH=. python tests/benchmarks/planning_speed.py`."""

import time
from collections.abc import Callable
from typing import Any

from planner.memory.estimate import MemoryEstimate, estimate
from planner.search.planning import make_plan
from planner.search.ranking import search
from planner.search.request import Request
from planner.speed.step_time import step_time
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model

CANDIDATES_A_SECOND = 10_000
ESTIMATE_SECONDS = 100e-6


def best_of(work: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest of `repeats` calls, after one that fills the caches."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print one line for each thing that is timed."""
    model, gpu = find_model("7b"), find_gpu("t4")
    wide = Request(model, gpu, effective_batch_size=2**10 * 3**4 * 5)
    result, estimated = search(wide), 0

    def counted(*arguments: Any) -> MemoryEstimate:
        nonlocal estimated
        estimated += 1
        return estimate(*arguments)

    search(wide, counted)
    count, seconds = result.num_candidates, best_of(lambda: search(wide))
    ratio = count / seconds / CANDIDATES_A_SECOND
    print(f"search    {count:6d} candidates, {estimated} estimated {seconds * 1e3:8.0f} ms   {ratio:.1f} x goal")
    usual = Request(model, gpu)
    seconds = best_of(lambda: make_plan(usual))
    print(f"plan      {search(usual).num_candidates:6d} candidates   {seconds * 1e3:8.0f} ms")
    assert result.best is not None
    step = result.best.step
    seconds = best_of(lambda: [estimate(model, step, gpu) for _ in range(100)]) / 100
    print(f"estimate                       {seconds * 1e6:8.0f} us         {ESTIMATE_SECONDS / seconds:.1f} x goal")
    seconds = best_of(lambda: [step_time(model, step, gpu) for _ in range(1000)]) / 1000
    print(f"step time                      {seconds * 1e6:8.0f} us")


if __name__ == "__main__":
    main()
