from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.asking.question import Access
from planner.config.run_config import LoraKnobs
from planner.serve.page_question import FIELDS, PageQuestion
from profiles.errors import ConfigError

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Z"]), max_size=12)
fields = st.dictionaries(st.sampled_from(FIELDS[:-1]), words)


@given(fields, st.lists(words.filter(bool), max_size=3))
def test_a_link_carries_the_whole_question(fields, settings):
    question = PageQuestion(**fields, settings=tuple(settings))
    assert PageQuestion.of(parse_qsl(question.query)) == question


def test_lines_of_the_text_area_are_settings():
    question = PageQuestion.of([("model", " 7b "), ("set", "lora.r=8\r\n\r\n optim=adamw_8bit ")])
    assert (question.model, question.settings) == ("7b", ("lora.r=8", "optim=adamw_8bit"))


def test_what_is_fixed_is_kept():
    question = PageQuestion(
        "7b", "A100-SXM4-80GB", "lora", max_length="1,024", settings=("lora.r=8", "optim=adamw_8bit")
    )
    config = question.ask(Access()).config
    assert (config.method, config.max_length, config.optim) == ("lora", 1024, "adamw_8bit")
    assert config.lora == LoraKnobs(r=8, lora_alpha=16)


def test_a_recipe_has_its_own_model_and_card():
    config = PageQuestion(recipe="phi-2-dpo").ask(Access()).config
    assert (config.objective, config.model, config.gpu) == ("dpo", "microsoft/phi-2", "T4")


def test_a_setting_takes_the_place_of_an_earlier_one():
    question = PageQuestion(settings=("optim=a", "lora.r=8")).with_settings({"optim": "b"})
    assert question.settings == ("lora.r=8", "optim=b")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ([("modle", "7b")], "the link has a field modle"),
        ([("gpu", "T4")], "no model is named"),
        ([("model", "7b"), ("rows", "many")], "rows is 'many', which is no whole number"),
        ([("model", "7b"), ("rows", "-3")], "rows is -3, but it must be at least 1"),
        ([("model", "7b"), ("method", "magic")], "method is 'magic', but it must be one of auto, full"),
        ([("model", "7b"), ("set", "optim")], "KNOB=VALUE"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(query, message):
    with pytest.raises(ConfigError, match=message):
        PageQuestion.of(query).ask(Access())
