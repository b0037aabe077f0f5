"""Laws of sharded steps; their figures are held to measured runs in tests/calibration/test_compare.py."""

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.memory.estimate import estimate
from planner.memory.parameters import adapter_bytes, base_weight_bytes, gradient_bytes, quantized_weight_bytes
from planner.memory.sharding import bucket_bytes
from planner.memory.states import state_bytes
from planner.step.network import network
from planner.step.step_spec import Adapter, Sharding, ShardingEngine, StepSpec
from profiles.errors import UnsupportedError
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model

A100 = find_gpu("a100-80gb")
MODELS = ("meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-0.5B", "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt2")
LORA = Adapter(16, ("q_proj", "k_proj", "v_proj", "o_proj", "c_attn"), 0.0, "float32")
FULL = StepSpec(micro_batch=1, seq_len=1024, weight_dtype="float32", autocast="bfloat16")
TOTALS = (base_weight_bytes, quantized_weight_bytes, adapter_bytes, gradient_bytes, state_bytes)


@st.composite
def steps(draw: st.DrawFn) -> StepSpec:
    method = draw(st.sampled_from(["full", "lora", "qlora"]))
    step = replace(FULL, micro_batch=draw(st.integers(1, 4)), seq_len=draw(st.sampled_from([256, 1024, 4096])))
    step = replace(step, checkpointing=draw(st.booleans()), gradients_persist=draw(st.booleans()))
    if method == "full":
        return step
    quantization = "nf4" if method == "qlora" else None
    return replace(step, weight_dtype="bfloat16", adapter=LORA, quantization=quantization, double_quant=True)


def shared(step: StepSpec, engine: ShardingEngine, num_gpus: int) -> StepSpec:
    return replace(step, sharding=Sharding(engine, num_gpus))


@given(step=steps(), name=st.sampled_from(MODELS), cards=st.sampled_from([2, 3, 8, 64]))
@settings(deadline=None, max_examples=40)
def test_the_shares_add_up_to_the_whole_and_to_little_more(step: StepSpec, name: str, cards: int):
    arch = network(find_model(name), "sft")
    for total in TOTALS:
        whole, share = total(arch, step), total(arch, shared(step, "fsdp", cards))
        flat = total(arch, shared(step, "zero3", cards))
        # FSDP2 keeps rows whole, of which Mixtral's experts have eight; constants of quantized weights are everywhere.
        assert whole <= share * cards
        assert flat <= share + 2**20
        if total is not quantized_weight_bytes:
            assert share <= whole / min(cards, 8) * 1.2 + 2**20
            assert flat <= whole / cards * 1.2 + 2**20


@given(
    step=steps(),
    name=st.sampled_from(MODELS),
    engine=st.sampled_from(["fsdp", "fsdp1", "zero3"]),
    cards=st.sampled_from([2, 4, 8, 32, 256]),
)
@settings(deadline=None, max_examples=60)
def test_more_cards_never_cost_more_memory_on_each(step: StepSpec, name: str, engine: ShardingEngine, cards: int):
    # FSDP2 pads what has fewer rows than there are cards, adapters and stacks of experts, and on 512 GPT-2's 768 rows.
    assume(engine != "fsdp" or (step.adapter is None and "Mixtral" not in name and cards < 256))
    model = find_model(name)
    few, many = (estimate(model, shared(step, engine, number), A100) for number in (cards, 2 * cards))
    assert many.process_bytes <= few.process_bytes


def test_fsdp2_gathers_a_stack_of_eight_experts_many_times_over_on_more_than_eight_cards():
    """Its shards are rows, padded to as many as there are cards (torch 2.13 `_fsdp_param.py` _init_sharded_param)."""
    mixtral = find_model("mistralai/Mixtral-8x7B-Instruct-v0.1")
    eight, many = (estimate(mixtral, shared(FULL, "fsdp", cards), A100) for cards in (8, 64))
    flat = estimate(mixtral, shared(FULL, "zero3", 64), A100)
    gathered = [sum(c.bytes for c in e.components if c.name == "gathered weights") for e in (eight, many)]
    assert gathered[1] > 6 * gathered[0]
    assert flat.process_bytes < eight.process_bytes < many.process_bytes


@given(step=steps(), name=st.sampled_from(MODELS), engine=st.sampled_from(["ddp", "zero1", "zero2", "zero3", "fsdp"]))
@settings(deadline=None, max_examples=40)
def test_the_components_of_a_sharded_step_add_up(step: StepSpec, name: str, engine: ShardingEngine):
    answer = estimate(find_model(name), shared(step, engine, 4), A100)
    assert sum(component.bytes for component in answer.components) == answer.allocated_bytes
    assert all(component.why for component in answer.components)


def test_each_stage_of_zero_shares_out_more():
    model = find_model("meta-llama/Llama-3.1-8B")
    step = replace(FULL, weight_dtype="bfloat16", autocast=None)
    sizes = [estimate(model, shared(step, engine, 8), A100).allocated_bytes for engine in ("zero1", "zero2", "zero3")]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1.2 * sizes[1] > 1.2 * sizes[2]


def test_ddp_adds_one_copy_of_the_gradients_to_what_one_card_needs():
    model = find_model("meta-llama/Llama-3.1-8B")
    step = replace(FULL, weight_dtype="bfloat16", adapter=LORA)
    alone, among = (estimate(model, each, A100) for each in (step, shared(step, "ddp", 8)))
    gradients = gradient_bytes(network(model, "sft"), step)
    assert among.allocated_bytes == alone.allocated_bytes + gradients


@pytest.mark.parametrize("engine", ["fsdp", "zero3"])
def test_what_waits_in_host_memory_is_not_on_the_card(engine: ShardingEngine):
    model = find_model("meta-llama/Llama-3.1-8B")
    step = replace(FULL, weight_dtype="float32")
    offloaded = replace(step, sharding=Sharding(engine, 4, offload="parameters"))
    names = {component.name for component in estimate(model, offloaded, A100).components}
    assert not {"weights", "optimizer states", "float32 copies"} & names


def test_cards_that_split_products_have_a_share_of_what_they_split_and_the_whole_of_the_rest():
    model = find_model("meta-llama/Llama-3.1-8B")
    split = replace(FULL, sharding=Sharding("fsdp", 8, tensor_parallel_size=8))
    arch, whole = network(model, "sft", 8), network(model, "sft")
    ends = 4 * (2 * 128256 * 4096 + 65 * 4096)
    assert base_weight_bytes(arch, split) - ends == pytest.approx((base_weight_bytes(whole, FULL) - ends) / 8, rel=1e-3)
    with pytest.raises(UnsupportedError, match="tensor_parallel_size is 3, which does not divide num_attention_h"):
        network(model, "sft", 3)


def test_cards_that_split_rows_store_a_share_of_the_activations():
    model = find_model("meta-llama/Llama-3.1-8B")
    long = replace(FULL, seq_len=32768)
    stored = {
        cards: sum(
            part.bytes
            for part in estimate(
                model, replace(long, sharding=Sharding("fsdp", 8, context_parallel_size=cards)), A100
            ).explain("loss")
            if part.name == "stored activations"
        )
        for cards in (1, 8)
    }
    assert stored[8] == pytest.approx(stored[1] / 8, rel=0.05)


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "fsdp1", "zero2", "zero3"])
def test_a_reference_below_an_adapter_works_on_what_it_works_on_alone(engine: ShardingEngine):
    step = replace(FULL, weight_dtype="bfloat16", adapter=LORA, objective="dpo", reference="adapter_off")
    model = find_model("meta-llama/Llama-3.1-8B")
    parts = [estimate(model, each, A100).explain("reference") for each in (step, shared(step, engine, 8))]
    alone, among = ([part.bytes for part in each if part.name == "loss at work"] for each in parts)
    assert alone == among != []


@pytest.mark.parametrize(("engine", "buckets"), [("zero1", 2), ("zero3", 1)])
def test_the_buckets_of_zero_are_the_square_of_the_hidden_size(engine: ShardingEngine, buckets: int):
    # Transformers' documentation of DeepSpeed: what `auto` puts for `reduce_bucket_size`.
    model = find_model("llama2-7b")
    step = replace(FULL, weight_dtype="bfloat16", autocast=None, sharding=Sharding(engine, 8))
    assert bucket_bytes(network(model, "sft"), step) == buckets * 4096 * 4096 * 2
