"""The page of errors shows what is predicted now."""

from calibration.compare import compare
from calibration.errors_page import PAGE, RUNS, section, sections
from calibration.measured_runs import read_runs


def test_the_part_of_the_closed_form_is_what_it_predicts_now():
    assert sections(PAGE.read_text("utf-8"))["closed-form"] == section(
        "closed-form", *compare(read_runs(RUNS), "closed-form")
    ), "run `python -m calibration.errors_page --with closed-form`"
