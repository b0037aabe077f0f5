import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.fitting.timed_steps import published_steps
from planner.speed.rates import speed_facts
from planner.speed.step_time import step_time
from planner.step.step_spec import Adapter, StepSpec
from profiles.errors import UnsupportedError
from profiles.fitted import fitted
from profiles.gpu_catalog import all_gpus, find_gpu
from profiles.model_catalog import find_model

MEASURED = published_steps()
MODEL, A100, T4 = find_model("mistralai/Mistral-7B-v0.1"), find_gpu("a100-80gb"), find_gpu("t4")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA = StepSpec(
    micro_batch=4,
    seq_len=2048,
    weight_dtype="bfloat16",
    autocast="bfloat16",
    adapter=Adapter(r=16, targets=ALL, dropout=0.0, dtype="float32"),
    loss="fused",
)
FULL = replace(LORA, adapter=None)


def ratio(one):
    return one.predicted() / one.tokens_per_second


def seconds(step, gpu=A100, accumulation=1):
    return step_time(MODEL, step, gpu, accumulation).seconds_per_step


@pytest.mark.parametrize("one", MEASURED, ids=lambda one: f"{one.group}-{one.step.micro_batch}x{one.step.seq_len}")
def test_published_throughput_is_met_within_20_percent(one):
    assert ratio(one) == pytest.approx(1, abs=0.2)


def test_the_error_over_all_published_runs_is_what_the_facts_state():
    errors = [math.log(ratio(one)) for one in MEASURED]
    error = math.sqrt(sum(error**2 for error in errors) / len(errors))
    assert error == pytest.approx(fitted().efficiencies("any", "any").error, abs=0.002)
    assert error < 0.09


def test_parts_add_up_to_the_step():
    speed = step_time(MODEL, LORA, A100, 4)
    assert sum(speed.parts.values()) == pytest.approx(speed.seconds_per_step)
    assert speed.tokens_per_second == pytest.approx(4 * LORA.num_tokens / speed.seconds_per_step)
    assert speed.bound == max(speed.parts, key=speed.parts.get)


def test_frozen_weights_save_a_third_of_the_products():
    no_checkpoints = {"checkpointing": False, "loss": "liger"}
    full = step_time(MODEL, replace(FULL, **no_checkpoints), A100).parts["products"]
    lora = step_time(MODEL, replace(LORA, **no_checkpoints), A100).parts["products"]
    assert lora == pytest.approx(full * 2 / 3, rel=0.02)


def test_checkpointing_each_second_layer_recomputes_half():
    off, every, second = (
        seconds(replace(LORA, checkpointing=on, checkpoint_every=n)) for on, n in ((False, 1), (True, 1), (True, 2))
    )
    assert second - off == pytest.approx((every - off) / 2, rel=1e-6)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantized_base_is_slower(quantization):
    assert seconds(replace(LORA, quantization=quantization)) > seconds(LORA)


def test_eager_attention_is_slower():
    assert seconds(replace(LORA, attention="eager")) > seconds(LORA)


def test_a_window_is_faster_only_beyond_its_length():
    windowed, full = find_model("mistralai/Mistral-7B-v0.1"), find_model("mistralai/Mistral-7B-v0.3")
    long, short = replace(LORA, micro_batch=1, seq_len=16384), replace(LORA, micro_batch=1, seq_len=2048)
    assert step_time(windowed, long, A100).parts["attention"] < step_time(full, long, A100).parts["attention"]
    assert step_time(windowed, short, A100).parts["attention"] == step_time(full, short, A100).parts["attention"]


def test_offloaded_checkpoints_pay_for_the_host_link():
    speed = step_time(MODEL, replace(LORA, checkpoint_offload=True), A100)
    both_ways = 2 * 32 * LORA.num_tokens * 4096 * 2
    assert speed.parts["host link"] == pytest.approx(both_ways / speed_facts().host_link.bytes_per_s)


def test_paged_states_travel_at_each_step():
    assert seconds(replace(FULL, optimizer="paged_adamw_8bit")) > seconds(replace(FULL, optimizer="adamw_8bit"))


def test_the_cpu_sets_the_pace_of_small_batches():
    speed = step_time(find_model("HuggingFaceTB/SmolLM2-135M"), replace(LORA, micro_batch=1, seq_len=64), A100)
    assert speed.bound == "kernel launches"


@pytest.mark.parametrize("gpu", [None, find_gpu("16GB")], ids=["cpu", "bare size"])
def test_unknown_rates_give_no_estimate(gpu):
    assert step_time(MODEL, LORA, gpu) is None


def test_bfloat16_on_a_card_that_emulates_it_gives_no_estimate():
    assert step_time(MODEL, LORA, T4) is None


def test_an_optimizer_that_nobody_described_is_refused():
    with pytest.raises(UnsupportedError, match="optim is 'sophia'"):
        step_time(MODEL, replace(LORA, optimizer="sophia"), A100)


@given(st.integers(1, 32), st.integers(16, 8192), st.sampled_from([FULL, LORA, replace(LORA, quantization="nf4")]))
@settings(max_examples=60)
def test_more_tokens_never_take_less_time(micro_batch, seq_len, step):
    step = replace(step, micro_batch=micro_batch, seq_len=seq_len)
    assert seconds(replace(step, micro_batch=micro_batch + 1)) >= seconds(step)
    assert seconds(replace(step, seq_len=seq_len + 1)) >= seconds(step)


@given(st.integers(1, 64))
def test_accumulation_only_repeats_the_micro_batch(accumulation):
    speed = step_time(MODEL, LORA, A100, accumulation)
    assert speed.seconds_per_step - speed.parts["optimizer"] == pytest.approx(
        accumulation * speed.seconds_per_micro_batch
    )


def test_every_measured_rate_belongs_to_a_card_of_the_catalog():
    names = {gpu.name for gpu in all_gpus()}
    assert {name for row in speed_facts().products.measured for name in row.gpus} <= names


@pytest.mark.parametrize("row", speed_facts().products.measured, ids=lambda row: row.gpus[0])
def test_no_measured_rate_is_far_above_the_spec(row):
    for name in row.gpus:
        spec = find_gpu(name).flops
        for dtype in ("fp32", "fp16", "bf16"):
            if getattr(row, dtype) and getattr(spec, dtype):
                assert 0.4 < getattr(row, dtype) / getattr(spec, dtype) < 1.2
