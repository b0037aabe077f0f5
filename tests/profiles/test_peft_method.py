import re
from pathlib import Path

import pytest

from profiles.errors import ConfigError
from profiles.peft_method import PeftOption, base_of, check_lora, find_method, peft_facts

METHODS = peft_facts().methods
KNOBS = {
    "quantization": "nf4",
    "dtype": "bfloat16",
    "gradient_checkpointing": True,
}


def test_the_facts_are_of_the_version_that_is_installed_with():
    constraints = Path(__file__).parents[2].joinpath("constraints.txt").read_text("utf-8")
    assert re.findall(r"^peft==(.*)$", constraints, re.MULTILINE) == [peft_facts().peft_version]


@pytest.mark.parametrize("name", METHODS)
def test_what_each_method_was_tried_with_is_valid(name):
    METHODS[name].check_options(METHODS[name].example)


@pytest.mark.parametrize("name", METHODS)
def test_each_outcome_has_a_reason_if_it_failed_and_none_if_not(name):
    assert all(outcome.works == (outcome.reason is None) for outcome in METHODS[name].bases.values())


def test_a_method_is_found_in_any_case():
    assert find_method("loha") is METHODS["LOHA"]


def test_an_unknown_method_gets_the_nearest():
    with pytest.raises(ConfigError, match="has no method lohaa; did you mean LOHA"):
        find_method("lohaa")


def test_an_unknown_option_gets_the_nearest():
    with pytest.raises(ConfigError, match="VERA has no option vera_droput; did you mean vera_dropout"):
        find_method("vera").check_options({"vera_droput": 0.1})


def test_an_option_of_the_wrong_kind_is_refused():
    with pytest.raises(ConfigError, match='r is "8", but LOHA takes int'):
        find_method("loha").check_options({"r": "8"})


def test_what_a_method_cannot_do_without_is_asked_for():
    with pytest.raises(ConfigError, match="PROMPT_TUNING needs the option num_virtual_tokens"):
        find_method("prompt_tuning").check_options({})


@pytest.mark.parametrize(
    ("kinds", "value", "taken"),
    [
        ("int", 3, True),
        ("int", True, False),
        ("int", 3.5, False),
        ("float", 3, True),
        ("bool", False, True),
        ("list | null", None, True),
        ("list | null", "q_proj", False),
        ('bool | "gaussian"', "gaussian", True),
        ('bool | "gaussian"', "gausian", False),
    ],
)
def test_an_option_takes_its_kinds_only(kinds, value, taken):
    assert PeftOption(type=kinds).takes(value) is taken


def test_a_base_that_a_method_does_not_train_on_is_refused_with_those_that_it_does():
    with pytest.raises(ConfigError, match=r"LOHA does not train on a base in fp4 .*; it trains on float32, bfloat16"):
        find_method("LOHA").check_base(base_of("fp4", "bfloat16"), KNOBS | {"quantization": "fp4"})


def test_a_knob_without_which_a_method_fails_is_asked_for():
    with pytest.raises(ConfigError, match="on a base in nf4 PREFIX_TUNING only trains with false"):
        find_method("PREFIX_TUNING").check_base("nf4", KNOBS)


def test_a_variant_of_lora_is_refused_where_it_failed():
    with pytest.raises(ConfigError, match='LoRA with init_lora_weights "pissa" does not train on a base in nf4'):
        check_lora({"r": 8, "init_lora_weights": "pissa"}, "nf4", KNOBS)


def test_plain_lora_is_no_variant():
    check_lora({"r": 8, "use_rslora": False, "use_dora": False, "init_lora_weights": True}, "nf4", KNOBS)
