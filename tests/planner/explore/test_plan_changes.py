import pytest

import planner
from planner.explore.plan_changes import KnobChange, plan_changes

SHORT = planner.can("7b", "24GB", max_length=1024)


def test_nothing_is_different_between_equal_answers():
    changes = plan_changes(SHORT, planner.can("7b", "24GB", max_length=1024))
    assert not changes
    assert (changes.bytes, changes.knobs) == (0, ())


def test_knobs_that_moved_are_named_with_both_values():
    wide = planner.can("7b", "24GB", max_length=1024, lora_r=64)
    changes = plan_changes(SHORT, wide)
    assert KnobChange("lora.r", 16, 64) in changes.knobs
    assert changes.bytes == wide.estimate.process_bytes - SHORT.estimate.process_bytes != 0


def test_a_verdict_and_a_speed_change():
    changes = plan_changes(planner.can("7b", "t4"), planner.can("7b", "t4", method="full"))
    assert (changes.before, changes.after) == ("fits", "no")
    assert changes.speedup is None
    faster = plan_changes(planner.can("7b", "a100-80gb"), planner.can("7b", "h100"))
    assert faster.speedup == pytest.approx(
        planner.can("7b", "h100").tokens_per_second / planner.can("7b", "a100-80gb").tokens_per_second
    )
    assert faster.speedup > 1
