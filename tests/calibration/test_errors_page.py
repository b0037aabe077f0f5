"""The page of errors shows what is predicted now."""

from functools import partial
from importlib import metadata

import pytest

from calibration.compare import as_kept, compare
from calibration.errors_page import EXPLAINED_FROM, EXPLAINED_ON_SEVERAL_CARDS, PAGE, RUNS, TRACED, section, sections
from calibration.trace.harness import harness_of
from calibration.truth.kept_traces import KeptTraces
from calibration.truth.measured_runs import read_runs
from calibration.truth.measured_step import question
from calibration.truth.misses import explained_rows

RETRACED = ("FIT-025", "FIT-042", "FMS-046", "SWD-044", "PEFT-033")
"""Of each kind of measured run one: quantized and moved weights, fused kernels, old attention, another loop."""


@pytest.fixture(scope="module")
def traced():
    return compare(read_runs(RUNS), partial(as_kept, kept=KeptTraces(TRACED)))


def test_the_part_of_the_closed_form_is_what_it_predicts_now():
    assert sections(PAGE.read_text("utf-8"))["closed-form"] == section("closed-form", *compare(read_runs(RUNS))), (
        "run `python -m calibration.errors_page --with closed-form`"
    )


def test_the_part_of_the_trace_is_what_is_kept(traced):
    assert sections(PAGE.read_text("utf-8"))["trace"] == section("trace", *traced), (
        "run `python -m calibration.errors_page --with trace`"
    )


def test_every_question_that_is_asked_now_was_traced(traced):
    assert [skip.id for skip in traced[1] if skip.why == "not traced yet"] == [], (
        "run `python -m calibration.errors_page --with trace`"
    )


@pytest.mark.slow
@pytest.mark.parametrize("run_id", RETRACED)
def test_what_is_kept_is_traced_again(run_id):
    from calibration.truth.traced_prediction import traced

    run = next(run for run in read_runs(RUNS) if run.id == run_id)
    kept = KeptTraces(TRACED)
    libraries, *more = kept.tracers().values()
    assert all(versions == libraries for versions in more), "run `python -m calibration.errors_page --with trace`"
    others = [name for name, version in libraries.items() if metadata.version(name) != version]
    if others:
        pytest.skip(f"traced with other versions of {', '.join(others)}")
    assert traced(*question(run), harness_of(run_id)) == kept.find(run_id, question(run))


def test_each_run_that_is_far_off_is_explained_and_no_other(traced):
    for metric, limit in EXPLAINED_FROM.items():
        one_card = (one for one in traced[0] if one.run.num_gpus == 1)
        assert {one.run.id for one in one_card if abs(one.error_of(metric) or 0) > limit} == explained_rows(metric)


def test_each_run_on_several_cards_that_the_closed_form_misses_is_named_and_no_other():
    shared = [one for one in compare(read_runs(RUNS))[0] if one.run.num_gpus > 1]
    off = {one.run.id for one in shared if one.error is not None and abs(one.error) > EXPLAINED_ON_SEVERAL_CARDS}
    assert off == explained_rows("reserved", "closed-form")
