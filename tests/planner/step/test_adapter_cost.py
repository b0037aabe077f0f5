import json

import pytest

from planner.step.adapter_cost import adapter_in_options

NAMES = ("down_proj", "q_proj", "v_proj")


def test_plain_lora_is_what_the_closed_form_describes():
    options = {"r": 4, "lora_alpha": 64, "use_rslora": True, "target_modules": "all-linear", "bias": "none"}
    adapter = adapter_in_options("LORA", options, "float32", NAMES)
    assert (adapter.r, adapter.targets, adapter.options) == (4, NAMES, None)


def test_a_rank_that_is_not_given_is_that_of_peft():
    assert adapter_in_options("LORA", {"target_modules": ["q_proj"]}, "float32", NAMES).r == 8


@pytest.mark.parametrize(
    ("peft_type", "options"),
    [
        ("LOHA", {"r": 8, "target_modules": ["q_proj"]}),
        ("LORA", {"target_modules": ["q_proj"], "layers_to_transform": [0, 1]}),
        ("LORA", {"target_modules": ["q_proj"], "bias": "all"}),
        ("LORA", {"target_modules": ".*q_proj"}),
        ("LORA", {"r": 8}),
    ],
)
def test_all_else_keeps_its_options(peft_type, options):
    adapter = adapter_in_options(peft_type, options, "bfloat16", NAMES)
    assert adapter.peft_type == peft_type
    assert {name: json.loads(value) for name, value in adapter.options} == options


def test_an_adapter_can_be_a_key_whatever_its_options():
    options = {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 4}}
    assert len({adapter_in_options("LOHA", options, "float32", NAMES) for _ in range(2)}) == 1
