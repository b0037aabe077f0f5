import pytest

from planner.config.run_config import LoraKnobs, RunConfig
from planner.search.space import loss_paths
from planner.step.hardware import (
    Precision,
    attention_implementations,
    objections,
    precisions,
    quantizations,
    wheel_note,
)
from profiles.build_architecture import architecture
from profiles.errors import UnsupportedError
from profiles.gpu_catalog import all_gpus, find_gpu
from profiles.model_catalog import find_model

LLAMA = find_model("meta-llama/Llama-2-7b-hf")
T5 = find_model("google/flan-t5-base")
GEMMA2 = find_model("google/gemma-2-2b")


def qlora(**knobs):
    return RunConfig(**{"model": "m", "method": "qlora", "quantization": "nf4", "lora": LoraKnobs(), **knobs})


@pytest.mark.parametrize("name", ["t4", "v100", "p100-pcie-16gb", "rtx 2080 ti"])
def test_adapters_train_in_float16_on_cards_without_bfloat16(name):
    assert precisions(LLAMA, find_gpu(name), "qlora") == (Precision("float16", "fp16"),)


@pytest.mark.parametrize("name", ["a100-80gb", "l4", "rtx 3090", "h100", "mi300x"])
def test_adapters_train_in_bfloat16_where_the_card_computes_in_it(name):
    assert precisions(LLAMA, find_gpu(name), "lora") == (Precision("bfloat16", "bf16"),)


def test_trained_weights_stay_float32_where_only_float16_is_fast():
    assert precisions(LLAMA, find_gpu("v100"), "full") == (Precision("float32", "fp16"),)


def test_full_fine_tuning_prefers_float32_weights_to_pure_bfloat16():
    assert precisions(LLAMA, find_gpu("a100-80gb"), "full") == (
        Precision("float32", "bf16"),
        Precision("bfloat16", "bf16"),
    )


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_models_that_overflow_in_float16_compute_in_float32_on_old_cards(method):
    assert precisions(T5, find_gpu("t4"), method) == (Precision("float32", "no"),)


def test_a_cpu_computes_in_float32():
    assert precisions(LLAMA, None, "qlora") == (Precision("float32", "no"),)


def test_int8_is_never_offered_on_volta():
    assert quantizations(find_gpu("v100")) == ("nf4",)


def test_int8_comes_before_4_bit_where_both_run():
    assert quantizations(find_gpu("t4")) == ("int8", "nf4")


def test_a_cpu_runs_both_quantizations():
    assert quantizations(None) == ("int8", "nf4")


def test_sdpa_is_not_offered_to_models_that_bound_their_scores():
    assert attention_implementations(architecture(GEMMA2), find_gpu("t4")) == ("eager",)


def test_a_model_that_needs_flash_attention_is_refused_on_an_older_card():
    with pytest.raises(UnsupportedError, match="only runs with flash_attention_2, and T4 cannot"):
        attention_implementations(architecture(find_model("microsoft/Phi-3-small-8k-instruct")), find_gpu("t4"))


def test_flash_attention_needs_ampere():
    assert "flash_attention_2" not in attention_implementations(architecture(LLAMA), find_gpu("t4"))
    assert "flash_attention_2" in attention_implementations(architecture(LLAMA), find_gpu("a10g"))


def test_bfloat16_on_a_t4_is_objected_to():
    assert objections(qlora(), LLAMA, find_gpu("t4")) == (
        "bfloat16 is only emulated on T4; use float16 with mixed_precision fp16",
    )


def test_float16_is_objected_to_for_a_model_that_overflows():
    (objection,) = objections(qlora(dtype="float16", mixed_precision="fp16", loss="full"), T5, find_gpu("a100-80gb"))
    assert objection.startswith("t5 overflows in float16")


def test_int8_on_a_v100_is_objected_to():
    config = qlora(quantization="int8", dtype="float16", mixed_precision="fp16")
    (objection,) = objections(config, LLAMA, find_gpu("v100"))
    assert "LLM.int8()" in objection


def test_the_flash_package_on_a_t4_is_objected_to():
    config = qlora(dtype="float16", mixed_precision="fp16", attn_implementation="flash_attention_2")
    assert objections(config, LLAMA, find_gpu("t4")) == ("flash_attention_2 has no kernels for T4; use sdpa",)


def test_a_scaled_loss_on_a_cpu_is_objected_to():
    (objection,) = objections(qlora(dtype="float16", mixed_precision="fp16"), LLAMA, None)
    assert objection == "mixed_precision is fp16, but a CPU cannot scale the loss; use no"


@pytest.mark.parametrize("knob", ["packing", "padding_free"])
@pytest.mark.parametrize("name", ["opt-125m", "falcon-7b", "bloom-560m"])
def test_joined_rows_are_objected_to_where_the_model_does_not_keep_them_apart(name, knob):
    model, joined = find_model(name), qlora(**{knob: True})
    (objection,) = objections(joined, model, find_gpu("a100-80gb"))
    assert objection.startswith(f"{knob} joins rows, but attention in a {model.model_type} model does not keep them")
    assert objections(joined, LLAMA, find_gpu("a100-80gb")) == ()


@pytest.mark.parametrize("name", ["v100", "p40", "p100-pcie-16gb"])
def test_cards_older_than_turing_need_another_wheel(name):
    assert "torch<2.15" in wheel_note(find_gpu(name))


@pytest.mark.parametrize("name", ["t4", "l4", "mi300x"])
def test_newer_cards_and_other_vendors_need_no_other_wheel(name):
    assert wheel_note(find_gpu(name)) is None


@pytest.mark.parametrize("gpu", all_gpus(), ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_the_rules_choose_is_never_objected_to(gpu, method):
    lora = None if method == "full" else LoraKnobs()
    for model in (LLAMA, T5, GEMMA2):
        for choice in precisions(model, gpu, method):
            config = RunConfig(
                model="m",
                method=method,
                lora=lora,
                dtype=choice.dtype,
                mixed_precision=choice.mixed_precision,
                loss=loss_paths("sft", model)[0],
                attn_implementation=attention_implementations(architecture(model), gpu)[0],
            )
            assert objections(config, model, gpu) == ()


def test_sdpa_is_objected_to_for_a_model_that_bounds_its_scores():
    card = find_gpu("a100-80gb")
    assert objections(qlora(attn_implementation="sdpa"), GEMMA2, card) == (
        "attention in a gemma2 model bounds its scores, which sdpa cannot; use eager",
    )
    assert objections(qlora(attn_implementation="eager"), GEMMA2, card) == ()
