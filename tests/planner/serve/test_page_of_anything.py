"""Whatever is typed into the page, it answers in words; nothing hangs and nothing breaks."""

from functools import partial
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from planner.serve.app import PARTS, Page, ServerSettings

SETTINGS = ServerSettings(hub=False)
PAGE = Page(SETTINGS, SETTINGS.access())

words = st.text(max_size=15)
numbers = st.one_of(st.integers(-10, 10**6).map(str), st.sampled_from(["9" * 20, "1e9", "NaN"]), words)


def known_or_words(*known):
    return st.one_of(st.sampled_from(known), words)


knobs = (
    "lora.r=0",
    "lora=3",
    "max_length=none",
    "learning_rate=NaN",
    "method=peft",
    "data.path=/etc/passwd",
    "num_gpus=3",
    "gpu=t4",
    "per_device_train_batch_size=3",
    "quantization=nf4",
)
questions = st.fixed_dictionaries(
    {"model": known_or_words("7b", "gpt2", "flan-t5-large", "mixtral", "0b", "a/b", "/etc", ".")},
    optional={
        "gpu": known_or_words("T4", "any", "cpu", "auto", "p4d.24xlarge", "0GB", "MI300X"),
        "method": known_or_words("full", "lora", "qlora", "peft"),
        "objective": known_or_words("dpo", "kto", "reward"),
        "max_length": numbers,
        "batch_size": numbers,
        "lora_r": numbers,
        "num_gpus": numbers,
        "num_nodes": numbers,
        "rows": numbers,
        "recipe": known_or_words("phi-2-dpo"),
        "set": known_or_words(*knobs),
    },
)


def request(fields):
    return Request({"type": "http", "query_string": urlencode(fields).encode()})


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(questions)
def test_the_page_answers_anything(fields):
    for page in (PAGE.answer, *(partial(PAGE.part, part) for part in PARTS)):
        answer = page(request(fields))
        assert answer.status_code == 200
        assert b"verdict" in answer.body or b"-title" in answer.body
    assert PAGE.run_file(request(fields)).status_code in (200, 404, 422)


@pytest.mark.parametrize("name", ["num_gpus", "num_nodes", "batch_size"])
def test_numbers_that_nobody_has_are_refused(name):
    answer = PAGE.answer(request({"model": "7b", "gpu": "T4", name: "1000000000"})).body.decode()
    assert f"{name} is 1000000000, but the most that is answered for is" in answer
