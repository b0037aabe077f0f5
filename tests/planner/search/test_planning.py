import pytest

from planner.data.lengths import DataLengths
from planner.search.planning import make_plan
from planner.search.request import Request
from planner.step.cluster import Cluster
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model

T4, A100 = find_gpu("t4"), find_gpu("a100-80gb")
TENSOR = {"parallel": {"strategy": "fsdp", "tensor_parallel_size": 8}}
EVEN = DataLengths.counted({500: 1000})


def plan(model, gpu, **request):
    return make_plan(Request(find_model(model), find_gpu(gpu) if gpu else None, model_name=model, **request))


# What people know from practice. Sources: QLoRA (arXiv:2305.14314, abstract and section 1) for 33B on 24 GB and 65B on
# 48 GB; the Colab notebooks of Unsloth and of the Hugging Face blog for 7B on a T4; litgpt config_hub/finetune for the
# 24 GB cards.
@pytest.mark.parametrize(
    ("model", "gpu", "method", "knobs"),
    [
        ("7b", "t4", "qlora", {}),
        ("mistralai/Mistral-7B-v0.1", "16GB", "qlora", {}),
        ("33b", "rtx 3090", "qlora", {"max_length": 512}),
        ("33b", "rtx 4090", "qlora", {"max_length": 512}),
        ("65b", "rtx a6000", "qlora", {"max_length": 512}),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "v100", "full", {}),
        ("EleutherAI/pythia-1b", "v100", "full", {}),
        ("meta-llama/Llama-2-7b-hf", "a10g", "lora", {"max_length": 512}),
    ],
)
def test_what_people_train_fits(model, gpu, method, knobs):
    assert plan(model, gpu, method=method, knobs=knobs).verdict == "fits"


@pytest.mark.parametrize(
    ("model", "gpu", "method", "knobs"),
    [
        ("mistralai/Mistral-7B-v0.1", "a100-80gb", "full", {"optim": "adamw_torch_fused", "dtype": "float32"}),
        ("mistralai/Mistral-7B-v0.1", "h100", "full", {"optim": "adamw_torch_fused", "dtype": "float32"}),
        ("7b", "v100", "full", {}),
        ("70b", "a100-80gb", "lora", {}),
        ("65b", "rtx 3090", "qlora", {}),
    ],
)
def test_what_people_cannot_train_does_not_fit(model, gpu, method, knobs):
    answer = plan(model, gpu, method=method, knobs=knobs)
    assert (answer.verdict, answer.config) == ("no", None)


def test_the_need_of_full_fine_tuning_is_explained():
    answer = plan("7b", "a100-80gb", method="full", knobs={"optim": "adamw_torch_fused", "dtype": "float32"})
    assert "optimizer states" in answer.shortfall
    assert "more than the 79.3 GiB there are" in answer.shortfall


def test_what_does_not_fit_names_another_method_and_another_card():
    changes = plan("7b", "v100", method="full", knobs={"max_length": 512}).nearest
    assert [change.what.split()[0] for change in changes[:1]] == ["method"]
    assert changes[-1].gpu is not None
    assert changes[-1].candidate.verdict == "fits"
    assert "USD/h" in changes[-1].what


def test_rows_that_are_too_long_name_a_length_that_fits():
    first = plan("7b", "t4", method="qlora", knobs={"max_length": 65536}).nearest[0]
    assert first.what == f"max_length {first.candidate.config.max_length}"
    assert first.candidate.config.max_length < 65536


def test_a_suggested_card_keeps_what_was_asked():
    asked = {"max_length": 1024, "optim": "adamw_torch_fused", "dtype": "float32"}
    config = plan("7b", "v100", method="full", knobs=asked).nearest[-1].candidate.config
    assert {name: getattr(config, name) for name in asked} == asked


def test_a_plan_that_fits_has_no_shortfall():
    answer = plan("1.1b", "t4")
    assert (answer.shortfall, answer.nearest) == (None, ())


def test_a_known_number_of_rows_gives_steps_hours_and_cost():
    answer = plan("1.1b", "t4", lengths=EVEN)
    assert answer.cost.num_steps == 63
    assert answer.cost.seconds == pytest.approx(63 * answer.speed.seconds_per_step)
    assert answer.cost.usd == pytest.approx(answer.cost.seconds / 3600 * T4.price.median_usd_per_hour)


@pytest.mark.parametrize(
    ("knobs", "num_steps"),
    [
        ({"max_steps": 7}, 7),
        ({"num_train_epochs": 2}, 126),
        ({"data": {"path": "x.jsonl", "eval_fraction": 0.5}}, 32),
        ({"packing": True, "max_length": 1000}, 32),
    ],
)
def test_steps_follow_from_the_knobs(knobs, num_steps):
    assert plan("1.1b", "a100-80gb", lengths=EVEN, knobs=knobs).cost.num_steps == num_steps


def test_without_data_there_is_no_cost():
    assert plan("1.1b", "t4").cost is None


def test_the_learning_rate_rises_over_3_percent_of_the_steps():
    assert plan("1.1b", "t4", lengths=EVEN).config.warmup_steps == 2


def test_a_given_warmup_stays():
    assert plan("1.1b", "t4", lengths=EVEN, knobs={"warmup_steps": 0}).config.warmup_steps == 0


@pytest.mark.parametrize(("method", "rate"), [("full", 2e-5), ("lora", 2e-4), ("qlora", 2e-4)])
def test_the_learning_rate_suits_the_method(method, rate):
    assert plan("160m", "a100-80gb", method=method).config.learning_rate == rate


@pytest.mark.parametrize(
    ("model", "gpu", "request_", "note"),
    [
        ("7b", "t4", {}, "7b is answered for meta-llama/Llama-2-7b-hf"),
        ("1.1b", "t4", {}, "float16 with a scaled loss: T4 does not compute in bfloat16"),
        ("google/flan-t5-base", "t4", {}, "overflows in float16"),
        ("google/gemma-2-2b", "t4", {}, "attention is eager"),
        ("1.1b", "v100", {}, "torch<2.15"),
        ("1.1b", "t4", {}, "rows are taken to be as long as max_length 2048"),
        ("1.1b", "t4", {"knobs": {"max_length": 4096}}, "more than the 2048 positions"),
        ("1.1b", "t4", {"lengths": EVEN, "knobs": {"max_length": 100}}, "cuts 100.0% of the rows"),
        ("1.1b", "16GB", {}, "not read from torch"),
        ("8b", "a100-80gb", {"method": "full", "cluster": Cluster(8), "knobs": TENSOR}, "are planned and not launched"),
    ],
)
def test_what_was_assumed_is_said(model, gpu, request_, note):
    assert any(note in said for said in plan(model, gpu, **request_).notes)


def test_a_cpu_gets_a_plan_without_a_speed():
    answer = plan("160m", None, free_bytes=2**33)
    assert (answer.verdict, answer.tokens_per_second, answer.config.gpu) == ("fits", None, None)


UNEVEN = DataLengths.counted({100: 500, 500: 500})


def test_padding_is_told_and_joined_rows_have_none():
    batch = {"per_device_train_batch_size": 8, "max_length": 512}
    padded = plan("1.1b", "a100-80gb", lengths=UNEVEN, knobs=batch).cost
    assert padded.padding_share == pytest.approx(1 - 300 / UNEVEN.expected_longest(8, 512))
    for joined in ({"packing": True}, {"padding_free": True}):
        assert plan("1.1b", "a100-80gb", lengths=UNEVEN, knobs=batch | joined).cost.padding_share == 0


def test_steps_and_padding_are_told_where_the_speed_is_not_known():
    cost = plan("pythia-70m", None, lengths=EVEN, free_bytes=8 << 30).cost
    assert (cost.num_steps, cost.seconds, cost.padding_share) == (63, None, 0)


def test_a_joined_batch_is_timed_with_the_tokens_that_it_has():
    knobs = {"per_device_train_batch_size": 8, "max_length": 2048}
    flash = {"attn_implementation": "flash_attention_2", "padding_free": True}
    padded = plan("1.1b", "a100-80gb", lengths=UNEVEN, knobs=knobs)
    joined = plan("1.1b", "a100-80gb", lengths=UNEVEN, knobs=knobs | flash)
    assert joined.cost.seconds < padded.cost.seconds
