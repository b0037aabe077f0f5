from dataclasses import replace

import pytest

from planner.search.common_cards import COMMON_CARDS, ask_common_cards, cheapest
from planner.search.ranking import search
from planner.search.request import Request
from profiles.errors import ConfigError
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model


def request_for(name, **more):
    return Request(model=find_model(name), gpu=find_gpu("t4"), **more)


@pytest.mark.parametrize("model", ["mistral-7b", "llama2-70b"])
def test_stopping_at_the_best_finds_the_same_best(model):
    request = request_for(model)
    for answer in ask_common_cards(request):
        result = search(replace(request, gpu=answer.gpu))
        assert answer.candidate == (result.best or result.closest)


def test_the_cheapest_card_is_one_that_fits():
    answers = ask_common_cards(request_for("llama2-70b"))
    chosen = cheapest(answers)
    fitting = [answer for answer in answers if answer.candidate.verdict == "fits" and answer.gpu.price]
    assert chosen.gpu.price.median_usd_per_hour == min(one.gpu.price.median_usd_per_hour for one in fitting)


def test_if_none_fits_the_largest_is_answered_for():
    answers = ask_common_cards(request_for("llama3.1-405b"))
    assert not any(answer.fits for answer in answers)
    assert cheapest(answers).gpu.name == "H200-SXM-141GB"


def test_a_card_that_cannot_do_what_is_pinned_is_left_out():
    pinned = {"dtype": "bfloat16", "mixed_precision": "bf16"}
    names = [answer.gpu.name for answer in ask_common_cards(request_for("mistral-7b", knobs=pinned))]
    assert names == [name for name in COMMON_CARDS if find_gpu(name).supports_bf16]


def test_pins_that_no_card_can_do_are_an_error():
    pinned = {"dtype": "bfloat16", "mixed_precision": "fp16"}
    with pytest.raises(ConfigError, match="mixed_precision is fp16, but dtype is bfloat16"):
        ask_common_cards(request_for("mistral-7b", knobs=pinned))
