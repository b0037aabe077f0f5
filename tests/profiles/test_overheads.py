import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.gpu_catalog import all_gpus
from profiles.overheads import MIB, overheads


def test_allocator_sizes_are_powers_of_two_or_multiples_of_the_small_segment():
    allocator = overheads().allocator
    assert (allocator.block_bytes, allocator.small_request_bytes) == (512, MIB)
    assert allocator.large_segment_bytes % allocator.small_segment_bytes == 0
    assert allocator.small_request_bytes < allocator.own_segment_from_bytes < allocator.large_segment_bytes


@given(st.integers(1, 2**40))
def test_the_driver_keeps_something_but_not_much(total):
    seen = overheads().carve_out.torch_bytes(total)
    assert 0.97 * total <= seen <= total


def test_contexts_name_cards_of_the_catalog():
    named = {name for card in overheads().context.cards for name in card.names}
    assert named <= {gpu.name for gpu in all_gpus()}


def test_every_card_of_the_catalog_belongs_to_a_generation():
    generations = overheads().context.generations
    for gpu in all_gpus():
        assert sum(row.covers(gpu.compute_capability, gpu.gfx_target) for row in generations) == 1


def test_an_unknown_card_gets_the_largest_context():
    context = overheads().context
    largest = max(row.mib for row in (*context.cards, *context.generations))
    assert (
        context.num_bytes("a new card", None, None) == context.num_bytes("a new card", (99, 0), None) == largest * MIB
    )


# Highest figures of public out-of-memory messages: memory in use less what torch had reserved.
@pytest.mark.parametrize(
    ("name", "capability", "seen_mib"),
    [
        ("T4", (7, 5), 151),
        ("L4", (8, 9), 255),
        ("A10G", (8, 6), 307),
        ("V100-SXM2-32GB", (7, 0), 400),
        ("RTX A6000", (8, 6), 492),
        ("L40S", (8, 9), 517),
        ("A100-SXM4-80GB", (8, 0), 545),
        ("RTX 4090", (8, 9), 616),
        ("H100-SXM5-80GB", (9, 0), 666),
        ("H200-SXM-141GB", (9, 0), 671),
        ("RTX 5090", (12, 0), 672),
        ("B200", (10, 0), 712),
    ],
)
def test_the_planned_context_covers_what_was_seen(name, capability, seen_mib):
    planned = overheads().context.num_bytes(name, capability, None) / MIB
    assert seen_mib <= planned <= 1.3 * seen_mib


@pytest.mark.slow
def test_allocator_constants_are_those_of_the_installed_torch():
    import re
    from pathlib import Path

    import torch

    header = (Path(torch.__file__).parent / "include/c10/core/AllocatorConfig.h").read_text("utf-8")
    constants = dict(re.findall(r"constexpr size_t (k\w+) = (\d+);", header))
    allocator = overheads().allocator
    assert int(constants["kMinBlockSize"]) == allocator.block_bytes
    assert int(constants["kSmallSize"]) == allocator.small_request_bytes
    assert int(constants["kSmallBuffer"]) == allocator.small_segment_bytes
    assert int(constants["kMinLargeAlloc"]) == allocator.own_segment_from_bytes
    assert int(constants["kRoundLarge"]) == allocator.own_segment_rounding_bytes
    assert f"large_segment_size_{{{allocator.large_segment_bytes}}}" in header
