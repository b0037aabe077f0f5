from collections.abc import Iterator
from importlib.metadata import version

import pytest

from profiles.peft_method import Outcome, PeftOption, peft_facts

# What PEFT warns of is an outcome of a trial, or none.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

FACTS = peft_facts()

SAMPLE = (
    ("LOHA", "nf4"),
    ("HRA", "int8"),
    ("OFT", "nf4"),
    ("ADALORA", "bfloat16"),
    ("PREFIX_TUNING", "float32"),
    ("TRAINABLE_TOKENS", "float32"),
)
"""One of each kind: an error, packed numbers taken for weights, ranks that move, a knob that is needed, a prompt."""


@pytest.fixture(scope="module")
def made() -> Iterator[object]:
    import torch

    from trainer.methods.survey import bench

    torch.set_num_threads(1)
    with bench() as made:
        yield made


@pytest.mark.skipif(version("peft") != FACTS.peft_version, reason="the facts are of another version of PEFT")
def test_the_facts_have_each_method_and_option_of_peft():
    from trainer.methods.options import method_names, options_of

    installed = {
        name: {option: PeftOption.model_validate(facts) for option, facts in options_of(name).items()}
        for name in method_names()
    }
    assert {name: method.options for name, method in FACTS.methods.items()} == installed


@pytest.mark.skipif(version("peft") != FACTS.peft_version, reason="the facts are of another version of PEFT")
@pytest.mark.parametrize(("name", "base"), SAMPLE)
def test_a_trial_ends_as_the_facts_say(made, name, base):
    from trainer.methods.survey import outcome

    method = FACTS.methods[name]
    assert Outcome.model_validate(outcome(made, name, method.example, base)) == method.bases[base]


def test_what_is_written_is_what_is_read():
    import tomllib

    from trainer.methods.survey import as_toml

    facts = {
        "peft_version": "1",
        "source": 'a "quoted" one',
        "lora_variants": [{"options": {"use_dora": True}, "bases": {"nf4": {"works": False, "reason": "no"}}}],
        "methods": {
            "LOHA": {
                "trains": "Linear",
                "required": ["r"],
                "example": {"r": 4, "target_modules": ["q"]},
                "resumes": True,
                "options": {"r": {"type": 'int | "full"', "default": 8}, "pattern": {"type": "dict", "default": {}}},
                "bases": {"nf4": {"works": True, "needs": {"loss": "full"}}},
            }
        },
    }
    assert tomllib.loads(as_toml(facts)) == facts


def test_the_page_shows_the_facts():
    from trainer.methods.table import TABLE, methods_table

    assert TABLE.read_text("utf-8") == methods_table(FACTS)
