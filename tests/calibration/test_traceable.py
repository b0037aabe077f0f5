"""The page of what can be traced shows what is kept, and some of it is tried again."""

import pytest

from calibration.traceable import PAGE, TRACED, cases, libraries, outcome, page, read_kept

AGAIN = (
    ("methods of PEFT", "C3A, int8"),  # writes into the output of its base
    ("methods of PEFT", "SHIRA, nf4"),  # has its shape by chance
    ("methods of PEFT", "FROD, float32"),  # needs the values of weights
    ("objectives", "kto, int8, preference precompute_ref_log_probs True"),
    ("decoders", "gemma2"),  # eager attention only
)

pytestmark = pytest.mark.slow


def kept_outcomes() -> dict[str, dict[str, str]]:
    """What is kept; other libraries have other methods and models."""
    kept = read_kept()
    if kept["libraries"] != libraries():
        pytest.skip("tried with other versions")
    return kept["outcomes"]


def test_the_page_is_what_is_kept():
    kept_outcomes()
    assert PAGE.read_text("utf-8") == page(read_kept()), "run `python -m calibration.traceable`"


def test_nothing_is_kept_that_is_not_asked_any_more():
    tried = {(group, name) for group, found in kept_outcomes().items() for name in found}
    assert tried <= {(case.group, case.name) for case in cases()}, "run `python -m calibration.traceable`"


@pytest.mark.parametrize(("group", "name"), AGAIN)
def test_what_is_kept_is_tried_again(group, name):
    kept = kept_outcomes()
    case = next(case for case in cases() if (case.group, case.name) == (group, name))
    assert outcome(case) == kept[group][name]


def test_every_method_that_trains_is_traced_but_one():
    refused = {name for name, one in kept_outcomes()["methods of PEFT"].items() if not one.startswith(TRACED)}
    assert refused == {"FROD, float32"}
