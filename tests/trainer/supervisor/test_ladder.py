import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.config.run_config import DataKnobs, LoraKnobs, RunConfig
from trainer.supervisor.ladder import advice, changes, in_words, needed_bytes, next_rung

FREE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
FREE += ("gradient_checkpointing", "checkpoint_every_n_layers", "checkpoint_offload")
"""Knobs that a rung may change: they move memory and time, and what is learned stays."""

METHODS = (
    {"method": "full"},
    {"method": "lora", "lora": LoraKnobs(r=8)},
    {"method": "qlora", "quantization": "nf4", "lora": LoraKnobs(r=8)},
)


@st.composite
def configs(draw):
    checkpointing = draw(st.booleans())
    return RunConfig(
        **draw(st.sampled_from(METHODS)),
        model=draw(st.sampled_from(["llama2-7b", "phi-2", "mistral-7b"])),
        gpu=draw(st.sampled_from([None, "A100-SXM4-80GB"])),
        data=DataKnobs(path="d.jsonl", eval_fraction=0.1),
        max_length=draw(st.sampled_from([128, 512])),
        per_device_train_batch_size=draw(st.integers(1, 24)),
        per_device_eval_batch_size=draw(st.integers(1, 12)),
        gradient_accumulation_steps=draw(st.integers(1, 4)),
        gradient_checkpointing=checkpointing,
        checkpoint_every_n_layers=draw(st.integers(1, 4)) if checkpointing else 1,
    )


@given(config=configs(), moment=st.sampled_from(["training", "evaluation", "saving"]))
@settings(deadline=None, max_examples=30)
def test_each_rung_needs_less_and_learns_the_same_until_there_is_none(config, moment):
    rungs = [config]
    while (rung := next_rung(rungs[-1], moment)) is not None:
        before = rungs[-1]
        assert needed_bytes(rung, moment) < needed_bytes(before, moment)
        assert rung.effective_batch_size == config.effective_batch_size
        assert set(changes(before, rung)) <= set(FREE)
        rungs.append(rung)
        assert len(rungs) < 20


def config(**knobs):
    return RunConfig(**{"model": "llama2-7b", "gpu": "A100-SXM4-80GB", "lora": LoraKnobs(), **knobs})


def test_the_ladder_from_top_to_bottom():
    top = config(per_device_train_batch_size=6, gradient_accumulation_steps=2, gradient_checkpointing=False)
    steps = []
    while (rung := next_rung(top, "training")) is not None:
        steps.append(in_words(changes(top, rung)))
        top = rung
    assert steps == [
        "per_device_train_batch_size 6 -> 3, gradient_accumulation_steps 2 -> 4",
        "per_device_train_batch_size 3 -> 1, gradient_accumulation_steps 4 -> 12",
        "gradient_checkpointing False -> True",
        "checkpoint_offload False -> True",
    ]


def test_memory_that_ends_in_the_evaluation_costs_the_evaluation_first():
    data = DataKnobs(path="d.jsonl", eval_fraction=0.1)
    rung = next_rung(config(data=data, per_device_eval_batch_size=8, per_device_train_batch_size=8), "evaluation")
    assert (rung.per_device_eval_batch_size, rung.per_device_train_batch_size) == (4, 8)


def test_kto_compares_the_examples_of_a_batch_so_it_stays_whole():
    kto = config(objective="kto", per_device_train_batch_size=8, gradient_checkpointing=False)
    assert next_rung(kto, "training").per_device_train_batch_size == 8


def test_nothing_helps_while_the_model_is_loaded():
    assert next_rung(config(per_device_train_batch_size=8), "loading") is None


def test_a_model_that_is_not_described_goes_down_all_the_same(tmp_path):
    rung = next_rung(config(model=str(tmp_path), per_device_train_batch_size=4), "training")
    assert rung.per_device_train_batch_size == 2


BOTTOM = {"per_device_train_batch_size": 1, "checkpoint_offload": True}


@pytest.mark.parametrize(
    ("knobs", "moment", "words"),
    [
        (
            {"per_device_train_batch_size": 4},
            "training",
            "set per_device_train_batch_size to 2 and set gradient_accumulation_steps to 2",
        ),
        ({"gradient_checkpointing": False}, "training", "set gradient_checkpointing to true"),
        ({**BOTTOM, "loss": "full"}, "training", "set loss to fused"),
        (BOTTOM, "training", "set method to qlora with quantization nf4"),
        ({**BOTTOM, "method": "qlora", "quantization": "nf4"}, "training", "lower max_length"),
        (
            {"method": "qlora", "quantization": "nf4"},
            "loading",
            "take a smaller model, or a card with more memory",
        ),
    ],
)
def test_the_advice_is_the_mildest_change_that_is_left(knobs, moment, words):
    assert advice(config(**knobs), moment) == words
