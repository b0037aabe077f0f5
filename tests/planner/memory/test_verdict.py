from dataclasses import replace

import pytest

from planner.memory.estimate import MemoryEstimate
from planner.memory.verdict import missing_bytes, usable_bytes, verdict
from profiles.errors import InputError
from profiles.gpu_catalog import find_gpu

T4 = find_gpu("t4")
ESTIMATE = MemoryEstimate(
    explain=lambda phase: (),
    phases={"backward": 100},
    binding_phase="backward",
    allocated_bytes=100,
    reserved_bytes=110,
    process_bytes=120,
    interval_bytes=(115, 130),
)


@pytest.mark.parametrize(
    ("usable", "expected"), [(131, "fits"), (130, "fits"), (129, "tight"), (115, "tight"), (114, "no")]
)
def test_the_verdict_follows_the_range(usable, expected):
    assert verdict(ESTIMATE, usable) == expected


def test_missing_bytes_are_those_that_would_make_it_fit():
    missing = missing_bytes(ESTIMATE, 100)
    assert verdict(ESTIMATE, 100 + missing) == "fits"
    assert verdict(ESTIMATE, 100 + missing - 1) == "tight"


def test_nothing_is_missing_where_it_fits():
    assert missing_bytes(replace(ESTIMATE, interval_bytes=(1, 2)), 100) == 0


def test_a_card_offers_the_memory_that_torch_sees():
    assert usable_bytes(T4) == T4.memory_bytes


def test_live_free_memory_counts_if_it_is_less():
    assert usable_bytes(T4, free_bytes=10**9) == 10**9
    assert usable_bytes(T4, free_bytes=10**12) == T4.memory_bytes


def test_what_the_user_keeps_back_is_not_usable():
    assert usable_bytes(T4, reserved_bytes=10**9) == T4.memory_bytes - 10**9


def test_the_memory_of_a_cpu_must_be_given():
    with pytest.raises(InputError, match="memory of a CPU is not known"):
        usable_bytes(None)
