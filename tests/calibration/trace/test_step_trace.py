import gc
import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from calibration.trace import step_trace as trace_module
from calibration.trace.step_trace import trace
from planner.step.step_spec import Adapter, StepSpec
from profiles.errors import UnsupportedError
from tests.calibration.real_step import real_peaks
from tests.calibration.traced_steps import ARCHITECTURES, DORA, FULL, LORA, QLORA, llama

pytestmark = pytest.mark.slow

ON_CPU = replace(LORA, device="cpu", attention="flash", weight_dtype="float32", autocast=None)


def of_method(peft_type: str, **options: object) -> Adapter:
    """An adapter of another method than LoRA."""
    written = tuple(sorted((name, json.dumps(value)) for name, value in options.items()))
    return Adapter(0, (), 0.0, "float32", peft_type=peft_type, options=written)


def check_extrapolation(architecture, step):
    """Hold a trace of few layers to that of all."""
    few, all_layers = trace(architecture, step), trace(architecture, step, whole=True)
    assert few.peaks() == all_layers.peaks()
    assert len(few.allocations) == len(all_layers.allocations)
    assert {(a.name, a.module) for a in few.allocations} == {(a.name, a.module) for a in all_layers.allocations}


STEPS: dict[str, StepSpec] = {
    "packed weights, dora, upcast, evaluation": replace(QLORA, adapter=DORA, kbit_upcast=True, eval_batch=4),
    "int8, reward, offloaded, math": replace(
        QLORA,
        quantization="int8",
        double_quant=False,
        objective="reward",
        loss="score",
        checkpoint_offload=True,
        attention="math",
    ),
    "full, dpo against a copy, 8-bit states": replace(FULL, objective="dpo", reference="copy", optimizer="adamw_8bit"),
    "full, gradients persist, one tensor at a time": replace(
        FULL, gradients_persist=True, optimizer="adagrad", loss="chunked"
    ),
    "no checkpoints, eager, liger": replace(LORA, checkpointing=False, attention="eager", loss="liger"),
    "every other layer, kto": replace(LORA, checkpoint_every=2, objective="kto", reference="adapter_off"),
}


@pytest.mark.parametrize("name", STEPS)
def test_few_layers_tell_of_all(name):
    check_extrapolation(llama(), STEPS[name])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_few_layers_tell_of_all_of_an_architecture(name):
    check_extrapolation(*ARCHITECTURES[name])


REAL: dict[str, StepSpec] = {
    "lora in 16 bit": replace(ON_CPU, weight_dtype="bfloat16", autocast="bfloat16"),
    "dora, all logits, no checkpoints, eager": replace(
        ON_CPU, adapter=DORA, loss="full", checkpointing=False, attention="eager"
    ),
    "full, adafactor": replace(ON_CPU, adapter=None, optimizer="adafactor"),
    "dpo against a copy": replace(ON_CPU, adapter=None, objective="dpo", reference="copy"),
    "kto": replace(ON_CPU, objective="kto", reference="adapter_off"),
    "orpo": replace(ON_CPU, objective="orpo", loss="odds_ratio"),
}


@pytest.mark.parametrize("name", REAL)
def test_a_trace_is_what_a_real_step_takes(name):
    traced = trace(llama(3), REAL[name]).peaks()
    # Counted tensors begin to count when an operator shows them, those of a trace when they are made.
    assert traced == pytest.approx(real_peaks(llama(3), REAL[name]), rel=0.005)


def test_a_reference_that_answered_before_is_not_asked():
    asked = trace(llama(3), replace(FULL, objective="dpo", reference="copy"))
    before = trace(llama(3), replace(FULL, objective="dpo", reference="none"))
    assert any(allocation.name.startswith("reference.") for allocation in asked.allocations)
    assert not any(allocation.name.startswith("reference.") for allocation in before.allocations)
    weights = sum(a.bytes for a in before.allocations if a.kind == "weight")
    assert max(asked.peaks().values()) - max(before.peaks().values()) == pytest.approx(weights, rel=0.01)


@pytest.mark.parametrize(("autocast", "itemsize"), [("bfloat16", 4), (None, 2)])
def test_an_output_that_is_kept_is_float32_where_accelerate_leaves_autocast(autocast, itemsize):
    architecture = llama(3)
    architecture.vocab_size = 4096
    kept, let_go = (
        trace(architecture, replace(LORA, loss="full", autocast=autocast, output_alive=alive)).peaks()["backward"]
        for alive in (True, False)
    )
    assert kept - let_go == LORA.num_tokens * architecture.vocab_size * itemsize


def test_an_adapter_that_spans_the_layers_is_traced_with_all_of_them():
    step = replace(LORA, adapter=of_method("PREFIX_TUNING", num_virtual_tokens=8), checkpointing=False)
    (prompt,) = {a.bytes for a in trace(llama(), step).allocations if a.kind == "adapter"}
    # A key and a value of each token, layer and shared head: float32.
    assert prompt == 8 * 5 * 2 * 64 * 4


def test_weights_at_places_drawn_by_chance_are_as_many_as_two_factors_have():
    step = replace(LORA, adapter=of_method("SHIRA", r=8, target_modules=["q_proj"]))
    allocations = trace(llama(3), step).allocations
    places = 8 * (128 + 128)
    assert [a.bytes for a in allocations if a.kind == "adapter"] == 3 * [4 * places]
    # A row and a column of four bytes each.
    assert [a.bytes for a in allocations if "shira_indices" in a.name] == 3 * [2 * 4 * places]


def test_a_method_that_needs_the_values_of_weights_is_refused():
    step = replace(LORA, adapter=of_method("FROD"), weight_dtype="float32", autocast=None)
    with pytest.raises(UnsupportedError, match="FROD cannot be traced: its shape follows from values"):
        trace(llama(), step)


@pytest.mark.parametrize(("optimizer", "of_words"), [("adamw_8bit", 4), ("paged_adamw_8bit", 0)])
def test_large_states_of_a_paged_optimizer_are_not_the_allocators(optimizer, of_words):
    architecture = llama(3)
    architecture.vocab_size = 1024  # 131,072 elements of the embedding, and of the head; of no other weight 100,000
    allocations = trace(architecture, replace(FULL, optimizer=optimizer)).allocations
    states = [a.name for a in allocations if a.kind == "optimizer state" and a.bytes > 2**16]
    assert len([name for name in states if "embed" in name or "head" in name]) == of_words


def test_an_optimizer_whose_library_is_missing_is_refused():
    with pytest.raises(UnsupportedError, match=r"the step cannot be traced: .*galore_torch"):
        trace(llama(), replace(FULL, optimizer="galore_adamw"))


def what_is_patched():
    """Functions that a trace exchanges, and settings of the process that it changes."""
    functions = (functional.scaled_dot_product_attention, functional.dropout, functional.softmax, torch.nn.Module.to)
    return *functions, torch.is_autocast_enabled, logging.root.manager.disable, gc.isenabled()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_of_a_trace_that_ends_early(error, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = what_is_patched()

    def fails(*_: object, **__: object) -> None:
        raise error("stopped")

    monkeypatch.setattr(trace_module.Phases, "on_optimizer_step", fails)
    with pytest.raises(error, match="stopped"):
        trace(llama(3), LORA)
    assert what_is_patched() == before
    assert not list(Path(tmp_path).iterdir())


def test_a_trace_says_nothing(capfd, recwarn):
    trace(llama(3), replace(QLORA, objective="kto", reference="adapter_off"))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
