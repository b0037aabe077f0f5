"""The page about accuracy shows what holds now."""

from calibration.accuracy_page import PAGE, page


def test_the_page_says_what_the_formulas_and_the_data_say_now():
    assert PAGE.read_text("utf-8") == page(), "run `python -m calibration.accuracy_page`"


def test_the_page_says_plainly_what_nobody_measured():
    text = PAGE.read_text("utf-8")
    assert "No GPU was at hand" in text
    assert "## Not measured by anybody" in text
