import pytest

from profiles.gpu_catalog import find_gpu
from profiles.residuals import residuals

T4, A100 = find_gpu("t4"), find_gpu("a100-80gb")


@pytest.mark.parametrize(
    ("card", "method", "nearness"),
    [
        ("t4", "lora", "card"),
        ("t4", "full", "none"),
        ("a100-40gb", "qlora", "generation"),
        ("rtx 2080 ti", "qlora", "generation"),
        ("h100", "lora", "none"),
        ("24GB", "lora", "none"),
        ("mi300x", "lora", "none"),
    ],
)
def test_evidence_says_how_near_the_measured_cards_are(card, method, nearness):
    assert residuals().evidence(find_gpu(card), method).nearness == nearness


def test_evidence_on_the_card_counts_its_runs():
    evidence = residuals().evidence(T4, "lora")
    assert evidence.runs > 1
    assert evidence.words == f"{evidence.runs} lora runs measured on this card"


def test_evidence_elsewhere_names_the_cards_and_says_that_this_one_is_calculated():
    words = residuals().evidence(find_gpu("h100"), "lora").words
    assert words == "lora runs measured on A100-SXM4-80GB and T4; this card: by calculation"


def test_the_range_is_wider_where_nothing_was_measured():
    for attention in ("fused", "eager"):
        assert residuals().highest(find_gpu("h100"), "lora", attention) > residuals().highest(A100, "lora", attention)


def test_a_method_of_few_runs_takes_the_spread_of_all():
    assert residuals().spread("full", "fused") == residuals().spread("any", "fused")
    assert residuals().spread("lora", "fused").method == "lora"
