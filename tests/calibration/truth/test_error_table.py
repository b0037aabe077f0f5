import pytest

from calibration.truth.error_table import Comparison, as_json, errors_of, summarize
from calibration.truth.measured_runs import read_runs
from calibration.truth.prediction import Prediction
from planner.units import MIB
from tests.calibration.test_compare import TRUTH

RUNS = {run.id: run for run in read_runs(TRUTH)}


def compared(id_, allocated_mib, reserved_mib, verdict="fits"):
    return Comparison(RUNS[id_], Prediction(allocated_mib * MIB, reserved_mib * MIB, verdict))


BOTH = compared("FIT-006", 3897, 4176)  # measured 3897 and 4640
ALLOCATED = compared("FMS-031", 35000, 40000)
RESERVED = compared("FIT-074", 12000, 12000)  # measured 12690
FAILED = compared("OOM-122", 16000, 16000)


def test_a_run_that_publishes_both_figures_is_judged_by_allocated_and_shown_with_both():
    assert BOTH.error == 0
    assert BOTH.error_of("reserved") == pytest.approx(-0.1)


def test_a_run_that_publishes_reserved_memory_is_judged_by_that():
    assert (RESERVED.metric, RESERVED.error_of("allocated")) == ("reserved", None)
    assert RESERVED.error == pytest.approx(12000 / 12690 - 1)


def test_errors_of_a_metric_are_those_of_the_runs_that_measured_it():
    assert errors_of([BOTH, ALLOCATED, RESERVED, FAILED], "reserved").rows == 2
    assert errors_of([BOTH, ALLOCATED, RESERVED, FAILED], "allocated").rows == 2


def test_a_failed_run_that_fits_and_a_run_that_is_refused_are_counted():
    refused = compared("FIT-006", 3897, 4176, "no")
    summary = summarize([BOTH, FAILED, refused], [])
    assert (summary.rows, summary.false_fits, summary.false_refusals) == (3, 1, 1)


def test_json_has_each_run_in_a_group_of_each_grouping():
    document = as_json([BOTH, ALLOCATED, FAILED], [])
    for grouping in document["groups"].values():
        assert sum(group["rows"] for group in grouping.values()) == 3
    assert document["rows"][2]["ran"] is False
