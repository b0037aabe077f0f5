from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import planner
from planner.memory.estimate import estimate
from planner.memory.parameters import base_weight_bytes, quantized_weight_bytes
from planner.step.step_spec import Adapter, StepSpec
from profiles.build_architecture import architecture
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import all_models, find_model

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LORA = StepSpec(1, 512, "bfloat16", adapter=Adapter(16, ATTENTION, 0.0, "float32"), autocast="bfloat16", loss="fused")
QLORA = replace(LORA, quantization="nf4", double_quant=True)
FULL = StepSpec(1, 512, "float32", autocast="bfloat16", loss="fused")
GPU = find_gpu("a100-80gb")

steps = st.builds(
    replace,
    st.sampled_from([LORA, QLORA, FULL]),
    micro_batch=st.integers(1, 8),
    seq_len=st.sampled_from([64, 512, 2048]),
    attention=st.sampled_from(["eager", "math", "efficient", "flash"]),
    loss=st.sampled_from(["full", "full_inplace", "chunked", "fused", "liger"]),
    checkpointing=st.booleans(),
    checkpoint_every=st.sampled_from([1, 2, 4]),
    optimizer=st.sampled_from(
        ["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd"]
    ),
    gradients_persist=st.booleans(),
    masked=st.booleans(),
)
models = st.sampled_from(["tinyllama", "qwen2.5-0.5b", "phi-2", "gemma2-2b", "mixtral-8x7b", "flan-t5-base", "gpt2"])


@settings(deadline=None)
@given(models, steps)
def test_components_add_up_to_the_binding_phase(name: str, step: StepSpec):
    result = estimate(find_model(name), step, GPU)
    assert sum(component.bytes for component in result.components) == result.allocated_bytes
    assert result.allocated_bytes == max(result.phases.values()) == result.phases[result.binding_phase]
    assert all(component.bytes > 0 and component.why for component in result.components)


@settings(deadline=None)
@given(models, steps)
def test_process_memory_holds_reserved_memory_which_holds_allocated_memory(name: str, step: StepSpec):
    result = estimate(find_model(name), step, GPU)
    low, high = result.interval_bytes
    assert result.allocated_bytes <= result.reserved_bytes < result.process_bytes
    assert result.allocated_bytes + GPU.context_bytes <= low <= result.process_bytes <= high


@settings(deadline=None)
@given(models, steps)
def test_more_tokens_never_cost_less(name: str, step: StepSpec):
    model = find_model(name)
    base = estimate(model, step, GPU).allocated_bytes
    assert estimate(model, replace(step, micro_batch=step.micro_batch + 1), GPU).allocated_bytes >= base
    assert estimate(model, replace(step, seq_len=step.seq_len * 2), GPU).allocated_bytes >= base


@settings(deadline=None)
@given(models, steps)
def test_checkpointing_never_stores_more(name: str, step: StepSpec):
    model = find_model(name)
    dense, sparse = (replace(step, checkpointing=True, checkpoint_every=every) for every in (1, 4))
    phases = [estimate(model, each, GPU).phases["loss"] for each in (dense, sparse, replace(step, checkpointing=False))]
    assert phases == sorted(phases)


@pytest.mark.parametrize("model", all_models(), ids=lambda model: model.hf_id)
def test_every_model_of_the_catalog_has_an_estimate(model):
    names = tuple(sorted({linear.name for linear, _ in architecture(model).linears()}))
    step = replace(QLORA, adapter=replace(QLORA.adapter, targets=names))
    result = estimate(model, step, GPU)
    assert result.allocated_bytes > 0


def test_seventy_billion_parameters_in_float32_weigh_280_gigabytes():
    weights = base_weight_bytes(architecture(find_model("70b")), FULL)
    assert weights == pytest.approx(280e9, rel=0.02)


def test_a_frozen_base_has_no_gradients_and_no_states():
    result = estimate(find_model("7b"), LORA, GPU)
    states = next(component for component in result.components if component.name == "optimizer states")
    adapters = 32 * 4 * 16 * (4096 + 4096)
    assert states.bytes == pytest.approx(2 * 4 * adapters, rel=0.001)


def test_gradients_that_persist_are_there_in_the_forward_pass():
    model = find_model("tinyllama")
    once, accumulated = (estimate(model, replace(FULL, gradients_persist=p), GPU) for p in (False, True))
    assert accumulated.phases["forward"] - once.phases["forward"] == pytest.approx(4 * 1.1e9, rel=0.01)


def test_dequantized_experts_stay_in_16_bit_unless_they_are_linear_modules():
    arch = architecture(find_model("mixtral-8x7b"))
    fused, separate = (replace(QLORA, experts_quantized=quantized) for quantized in (False, True))
    assert quantized_weight_bytes(arch, separate) > 20 * quantized_weight_bytes(arch, fused)


def test_paged_states_take_nothing_of_the_card():
    names = {c.name for c in estimate(find_model("7b"), replace(FULL, optimizer="paged_adamw_8bit"), GPU).components}
    unpaged = {c.name for c in estimate(find_model("7b"), replace(FULL, optimizer="adamw_8bit"), GPU).components}
    assert "optimizer states" in unpaged
    assert "weights" in names


def test_on_a_cpu_nothing_but_live_tensors_counts():
    result = estimate(find_model("tinyllama"), replace(LORA, device="cpu"), None)
    assert result.allocated_bytes == result.reserved_bytes == result.process_bytes
    assert result.interval_bytes == (result.allocated_bytes, result.allocated_bytes)


def test_evaluation_is_a_phase_of_runs_that_evaluate():
    model = find_model("tinyllama")
    assert "evaluation" not in estimate(model, LORA, GPU).phases
    assert "evaluation" in estimate(model, replace(LORA, eval_batch=8), GPU).phases


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_components_of_each_phase_add_up_to_its_peak(method):
    memory = planner.estimate("llama3.1-8b", "a100-80gb", method=method).estimate
    assert {phase: sum(part.bytes for part in memory.explain(phase)) for phase in memory.phases} == memory.phases


@pytest.mark.parametrize(("model", "itemsize"), [("phi-2", 4), ("llama2-7b", 2)])
def test_stored_checkpoints_are_explained_in_the_dtype_that_layers_give_them(model, itemsize):
    # The parallel branches of Phi-2 add up in the float32 of an adapter's products.
    memory = estimate(find_model(model), replace(QLORA, checkpointing=True), GPU)
    stored = next(part for part in memory.components if part.name == "stored activations")
    assert stored.why.endswith(f"x {itemsize} B")
