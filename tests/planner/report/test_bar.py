import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from planner.memory.estimate import Component, MemoryEstimate
from planner.report.bar import print_memory_bar, segment_cells, segments
from planner.units import GIB


def estimate_of(*sizes: int) -> MemoryEstimate:
    components = tuple(Component(f"part {i}", size, f"{size} x 1 B".format) for i, size in enumerate(sizes))
    allocated = sum(sizes)
    return MemoryEstimate(
        explain=lambda phase: components,
        phases={"backward": allocated},
        binding_phase="backward",
        allocated_bytes=allocated,
        reserved_bytes=allocated + GIB,
        process_bytes=allocated + 2 * GIB,
        interval_bytes=(allocated + GIB, allocated + 3 * GIB),
    )


def printed(estimate: MemoryEstimate, usable: int, width: int, encoding: str = "utf-8") -> list[str]:
    buffer = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_memory_bar(Console(file=buffer, width=width, highlight=False), estimate, usable)
    buffer.seek(0)
    return buffer.read().splitlines()


@given(st.lists(st.integers(0, 80 * GIB), min_size=1, max_size=8), st.integers(1, 100))
def test_cells_add_up_to_the_share_of_the_whole(sizes, width):
    full_scale = max(1, sum(sizes) * 2)
    assert sum(segment_cells(sizes, full_scale, width)) == round(sum(sizes) * width / full_scale)


@given(st.lists(st.integers(1, 80 * GIB), min_size=1, max_size=12))
def test_segments_add_up_to_the_process(sizes):
    estimate = estimate_of(*sizes)
    assert sum(part.bytes for part in segments(estimate)) == estimate.process_bytes


def test_small_components_are_joined():
    names = [part.name for part in segments(estimate_of(*range(GIB, GIB + 8)))]
    assert names[5:] == ["other tensors", "allocator reserve", "CUDA context"]


def test_what_fits_stays_before_the_mark():
    assert printed(estimate_of(4 * GIB), 12 * GIB, 40, "ascii") == [
        "  ############%%%===..................|",
        "                      12.0 GiB usable ^",
        "  # part 0               4.0 GiB",
        "  % allocator reserve    1.0 GiB",
        "  = CUDA context         1.0 GiB",
    ]


def test_what_does_not_fit_passes_the_mark():
    bar, scale, *_ = printed(estimate_of(10 * GIB), 6 * GIB, 40, "ascii")
    assert bar == "  ##################|############%%%==="
    assert scale.index("^") == bar.index("|")


@pytest.mark.parametrize("width", [20, 50, 60, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_line_is_wider_than_the_console(width, encoding):
    lines = printed(estimate_of(GIB, 2 * GIB, 3 * GIB), 16 * GIB, width, encoding)
    assert all(len(line) <= max(width, 36) for line in lines)
