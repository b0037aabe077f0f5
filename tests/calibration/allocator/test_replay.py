from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.allocator.caching import Settings
from calibration.allocator.replay import process_bytes, replay, smallest_capacity
from calibration.allocator.stream import Allocation, Phase, Stream
from planner.step.step_spec import Sharding, StepSpec
from profiles.gpu_catalog import find_gpu
from profiles.overheads import MIB, overheads

EXPANDABLE = Settings(expandable_segments=True)


def take(stream: Stream, phase: Phase, num_bytes: int) -> int:
    stream.begin(phase)
    return stream.allocate(Allocation(num_bytes, "empty", "", phase, "temporary"))


def step_of(*sizes: int) -> Stream:
    """A stream that loads 100 MiB, takes these sizes in a forward pass, gives them back in a backward pass."""
    stream = Stream()
    take(stream, "load", 100 * MIB)
    taken = [take(stream, "forward", size) for size in sizes]
    stream.begin("backward")
    for index in reversed(taken):
        stream.free(index)
    return stream


streams = st.lists(st.integers(0, 50 * MIB), max_size=30).map(lambda sizes: step_of(*sizes))


def test_each_phase_has_its_peaks():
    replayed = replay(step_of(30 * MIB, 40 * MIB), Settings())
    assert {phase: (peak.allocated // MIB, peak.reserved // MIB) for phase, peak in replayed.phases.items()} == {
        "load": (100, 100),
        "forward": (170, 170),
        "backward": (170, 170),
    }
    assert replayed.peak == replayed.phases["forward"]
    assert (replayed.allocated_at_end, replayed.reserved_at_end) == (100 * MIB, 170 * MIB)
    assert replayed.out_of_memory is None


def test_empty_tensors_take_nothing():
    stream = Stream()
    stream.free(take(stream, "forward", 0))
    assert replay(stream, Settings()).peak.reserved == 0


def test_the_request_that_failed_is_named():
    failed = replay(step_of(30 * MIB, 40 * MIB), Settings(capacity=160 * MIB)).out_of_memory
    assert failed is not None
    assert (failed.event, failed.phase, failed.allocation.bytes) == (2, "forward", 40 * MIB)


def test_the_smallest_card_is_smaller_than_what_a_larger_one_reserves():
    stream = step_of(30 * MIB)
    take(stream, "step", 40 * MIB)
    # 30 MiB are cached when 40 are asked for: 170 MiB where there is room for them, 140 where there is not.
    assert replay(stream, Settings()).peak.reserved == 170 * MIB
    assert smallest_capacity(stream, Settings()) == 140 * MIB
    assert replay(stream, Settings(capacity=140 * MIB)).retries == 1


@given(streams, st.sampled_from([Settings(), EXPANDABLE]))
def test_a_stream_runs_at_its_smallest_capacity_and_not_below(stream, settings):
    least = smallest_capacity(stream, settings)
    assert max(stream.peaks().values()) <= least <= replay(stream, settings).peak.reserved
    at_least = Settings(settings.expandable_segments, capacity=least)
    below = Settings(settings.expandable_segments, capacity=least - 2 * MIB)
    assert replay(stream, at_least).out_of_memory is None
    assert replay(stream, below).out_of_memory is not None


@given(streams, st.sampled_from([Settings(), EXPANDABLE]))
def test_the_allocator_counts_at_least_what_the_stream_counts(stream, settings):
    replayed = replay(stream, settings)
    for phase, peak in stream.peaks().items():
        assert replayed.phases[phase].allocated >= peak
    if settings == EXPANDABLE:  # which leaves no rest of a block unused
        assert replayed.peak.allocated == max(stream.peaks().values())


def test_a_process_holds_its_context_too():
    gpu, alone = find_gpu("t4"), StepSpec(1, 128, "float16")
    replayed = replay(step_of(30 * MIB), Settings())
    assert process_bytes(replayed, alone, gpu) == 130 * MIB + gpu.context_bytes


def test_a_process_that_talks_to_other_cards_holds_buffers_of_nccl():
    gpu, alone = find_gpu("t4"), StepSpec(1, 128, "float16")
    replayed = replay(step_of(30 * MIB), Settings())
    shared = replace(alone, sharding=Sharding("ddp", 2))
    more = process_bytes(replayed, shared, gpu) - process_bytes(replayed, alone, gpu)
    assert more == overheads().context.nccl_mib * MIB


def test_a_stream_without_steps_cannot_be_prolonged():
    with pytest.raises(ValueError, match="no training step"):
        replay(step_of(30 * MIB), Settings(), steps=2)
