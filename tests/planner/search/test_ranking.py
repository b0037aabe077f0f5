from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.config.run_config import RunConfig
from planner.data.lengths import DataLengths
from planner.memory.estimate import estimate
from planner.search.ranking import CLEARLY, search
from planner.search.request import Request
from planner.step.resolve import resolve_step
from profiles.build_architecture import architecture
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import all_models, find_model

MODEL, T4, A100 = find_model("7b"), find_gpu("t4"), find_gpu("a100-80gb")
SMALL = find_model("TinyLlama/TinyLlama-1.1B-Chat-v1.0")
VERDICTS = ("no", "tight", "fits")

cards = st.sampled_from([find_gpu(name) for name in ("t4", "v100", "rtx 3090", "a100-40gb", "h100")])
models = st.sampled_from([find_model(name) for name in ("160m", "1.1b", "7b", "13b")])
methods = st.sampled_from(["auto", "full", "lora", "qlora"])
lengths = st.sampled_from([256, 1000, 4096])


def only(request):
    """`request` with most knobs given, so that a law is checked on few candidates."""
    return replace(request, knobs={"optim": "adamw_torch_fused", "attn_implementation": "sdpa", **request.knobs})


def verdict(request):
    best = search(only(request)).best
    return VERDICTS.index(best.verdict if best else "no")


@given(models, cards, methods, lengths)
@settings(max_examples=25, deadline=None)
def test_the_best_keeps_what_was_given_and_fits(model, gpu, method, max_length):
    request = only(Request(model, gpu, method, knobs={"max_length": max_length}))
    result = search(request)
    if result.best is None:
        assert result.closest.estimate.interval_bytes[0] > request.usable_bytes
        return
    config, (low, high) = result.best.config, result.best.estimate.interval_bytes
    assert config.max_length == max_length
    assert config.effective_batch_size == request.effective_batch_size
    assert method in ("auto", config.method)
    assert (high if result.best.verdict == "fits" else low) <= request.usable_bytes
    assert result.best.estimate == estimate(model, result.best.step, gpu)


@given(models, methods, lengths, st.integers(4 * 2**30, 80 * 2**30), st.integers(0, 8 * 2**30))
@settings(max_examples=25, deadline=None)
def test_more_memory_never_makes_the_verdict_worse(model, method, max_length, free, more):
    request = Request(model, A100, method, knobs={"max_length": max_length}, free_bytes=free)
    assert verdict(replace(request, free_bytes=free + more)) >= verdict(request)


@given(models, methods, st.integers(64, 4000), st.integers(1, 500))
@settings(max_examples=25, deadline=None)
def test_shorter_rows_never_make_the_verdict_worse(model, method, max_length, less):
    request = Request(model, T4, method, knobs={"max_length": max_length})
    shorter = replace(request, knobs={"max_length": max(1, max_length - less)})
    assert verdict(shorter) >= verdict(request)


@pytest.mark.parametrize("method", ["auto", "full", "qlora"])
def test_every_candidate_is_the_best_or_has_a_reason(method):
    result = search(Request(SMALL, T4, method))
    configs = [loser.config.model_dump_json() for loser in result.losers] + [result.best.config.model_dump_json()]
    assert len(set(configs)) == len(configs) == result.num_candidates
    assert all(loser.reason for loser in result.losers)


def test_the_16_bit_base_wins_where_it_fits():
    assert search(Request(SMALL, T4)).best.config.quantization is None


def test_8_bits_win_over_4_where_16_do_not_fit():
    assert search(Request(find_model("13b"), find_gpu("rtx 3090"))).best.config.quantization == "int8"


def test_4_bits_win_where_the_card_has_no_int8():
    assert search(Request(find_model("13b"), find_gpu("v100"))).best.config.quantization == "nf4"


@given(models, cards, lengths)
@settings(max_examples=25, deadline=None)
def test_a_base_is_quantized_only_where_a_finer_one_does_not_fit(model, gpu, max_length):
    knobs = {"max_length": max_length, "lora": {"r": 8}}
    best = search(only(Request(model, gpu, knobs=knobs))).best
    if best is None or best.config.quantization is None:
        return
    finer = (None, "int8")[: 2 if best.config.quantization == "nf4" and gpu.supports_int8 else 1]
    for quantization in finer:
        other = search(only(Request(model, gpu, knobs=knobs | {"quantization": quantization}))).best
        assert other is None or VERDICTS.index(other.verdict) < VERDICTS.index(best.verdict)


def test_float32_weights_and_states_win_where_they_fit():
    config = search(Request(SMALL, A100, "full")).best.config
    assert (config.dtype, config.optim) == ("float32", "adamw_torch_fused")


def test_nothing_as_precise_is_clearly_faster_than_the_best():
    result = search(Request(SMALL, T4))
    assert all(
        other.lossiness > result.best.lossiness or other.pace <= result.best.pace * 1.02
        for other in result.alternatives
    )


def test_a_package_beside_torch_is_only_an_alternative():
    result = search(Request(MODEL, A100, "lora", knobs={"per_device_train_batch_size": 8}))
    assert result.best.config.attn_implementation == "sdpa"
    assert "needs the flash-attn package" in {loser.reason for loser in result.losers}


def test_each_alternative_is_clearly_better_in_something():
    best, *others = (result := search(Request(MODEL, T4))).best, *result.alternatives
    assert others
    for other in others:
        faster = other.pace > best.pace * (1 + CLEARLY)
        assert faster or other.estimate.process_bytes < best.estimate.process_bytes * (1 - CLEARLY)


def test_long_rows_are_given_up_only_if_nothing_fits():
    request = Request(MODEL, T4, "lora", free_bytes=find_gpu("t4").memory_bytes)
    assert search(request).best.config.max_length == 2048
    squeezed = search(replace(request, free_bytes=request.usable_bytes - 2**30)).best
    assert squeezed.config.max_length < 2048


def test_a_plan_for_a_card_of_unknown_speed_still_prefers_less_work():
    best = search(Request(find_model("160m"), find_gpu("16GB"))).best
    assert best.tokens_per_second is None
    assert not best.config.gradient_checkpointing


def test_padding_makes_small_micro_batches_faster():
    uneven = DataLengths.counted({64: 950, 2048: 50})
    best = search(Request(MODEL, A100, "lora", knobs={"max_length": 2048}, lengths=uneven)).best
    assert (
        best.config.per_device_train_batch_size
        < search(
            Request(MODEL, A100, "lora", knobs={"max_length": 2048}, lengths=DataLengths.counted({64: 1000}))
        ).best.config.per_device_train_batch_size
    )


@pytest.mark.parametrize("model", all_models(), ids=lambda model: model.hf_id)
def test_what_is_found_is_estimated_with_the_same_figures(model):
    gpu = T4 if "sdpa" in architecture(model).attention_codes else A100
    knobs = {"per_device_train_batch_size": 1, "checkpoint_every_n_layers": 1, "max_length": 1024}
    result = search(Request(model, gpu, knobs=knobs))
    found = result.best or result.closest
    again = RunConfig.model_validate(found.config.model_dump())
    assert estimate(model, resolve_step(again, model, gpu), gpu) == found.estimate


def test_the_estimator_is_an_argument():
    calls = []

    def counting(model, step, gpu):
        calls.append(step)
        return estimate(model, step, gpu)

    search(Request(SMALL, T4), counting)
    assert calls
