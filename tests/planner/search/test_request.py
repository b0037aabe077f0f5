import pytest

from planner.search.request import Request
from profiles.errors import ConfigError
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model

MODEL, GPU = find_model("7b"), find_gpu("t4")


def test_micro_batches_are_the_divisors_of_the_batch():
    assert Request(MODEL, GPU, effective_batch_size=12).batches() == (
        (1, 12),
        (2, 6),
        (3, 4),
        (4, 3),
        (6, 2),
        (12, 1),
    )


def test_a_given_micro_batch_fixes_the_accumulation():
    assert Request(MODEL, GPU, knobs={"per_device_train_batch_size": 4}).batches() == ((4, 4),)


def test_a_given_accumulation_fixes_the_micro_batch():
    assert Request(MODEL, GPU, knobs={"gradient_accumulation_steps": 8}).batches() == ((2, 8),)


def test_both_given_make_the_batch():
    knobs = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 5}
    assert Request(MODEL, GPU, knobs=knobs).batches() == ((3, 5),)


def test_a_micro_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="16 is not a multiple of it"):
        Request(MODEL, GPU, knobs={"per_device_train_batch_size": 3}).batches()


def test_an_accumulation_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="gradient_accumulation_steps is 5"):
        Request(MODEL, GPU, knobs={"gradient_accumulation_steps": 5}).batches()


def test_the_model_to_load_is_the_one_that_was_named():
    chat = "mistralai/Mistral-7B-Instruct-v0.1"
    assert Request(MODEL, GPU, model_name=chat).loadable_name == chat


def test_a_bare_size_is_loaded_as_the_model_that_stands_for_it():
    assert Request(MODEL, GPU, model_name="7b").loadable_name == "meta-llama/Llama-2-7b-hf"
