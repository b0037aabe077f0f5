"""Runs whose weights came by threads that race: what is reserved depends on how far these were ahead.

Transformers 5.0 lets four threads put weights on the card, in the dtype of the file, while the main thread packs one
after the other, and nothing holds them back (5.0.0 `core_model_loading.py`: `convert_and_load_state_dict_in_model`,
`GLOBAL_WORKERS`). Which requests the cache of the allocator is cut up for differs from run to run: one configuration
was measured at 11,880 and 13,272 MiB. From 5.17.0 on quantized models are loaded without threads.
"""

from collections.abc import Iterator

from calibration.allocator.caching import Settings
from calibration.allocator.loading import with_loading
from calibration.allocator.replay import replay
from calibration.allocator.stream import Stream
from calibration.trace.harness import Harness
from calibration.truth.measured_runs import MeasuredRun
from planner.step.step_spec import StepSpec

VERSIONS = "transformers 5.0."


def races(run: MeasuredRun) -> bool:
    """Whether threads raced to load the weights of `run`."""
    return VERSIONS in run.versions and run.quantization != "none"


def reserved_range(stream: Stream, step: StepSpec, harness: Harness) -> tuple[int, int]:
    """The least and the most bytes that are reserved, over how many weights the threads are ahead: none to all."""
    found = [
        replay(with_loading(stream, step, harness.weights, ahead), Settings()).peak.reserved
        for ahead in _distances(sum(one.kind in ("weight", "quantized weight") for one in stream.allocations))
    ]
    return min(found), max(found)


def _distances(most: int) -> Iterator[int]:
    """0, 1, 2, 3, 4, 6, 8, 12 and so on, and all."""
    yield from (0, 1)
    distance = 2
    while distance < most:
        yield from (distance, distance + distance // 2)
        distance *= 2
    yield most
