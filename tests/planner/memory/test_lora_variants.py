"""Variants of LoRA in real steps on a CPU: those that the closed form takes for LoRA, and those that it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from planner.memory.estimate import estimate
from planner.step.adapter_cost import BEGINNINGS, adapter_in_options
from planner.step.step_spec import Adapter, StepSpec
from profiles.build_architecture import architecture
from profiles.errors import UnsupportedError
from tests.planner.memory.test_real_steps import small

pytestmark = pytest.mark.slow

MODEL = small("tinyllama")
NAMES = tuple(sorted({linear.name for linear, _ in architecture(MODEL).linears()}))
LORA = {"r": 8, "target_modules": list(NAMES)}
STEP = StepSpec(4, 128, "bfloat16", autocast="bfloat16", checkpointing=False, device="cpu")


VARIANTS = ({"use_rslora": True}, *({"init_lora_weights": way} for way in sorted(BEGINNINGS - {True}, key=str)))


def peak(options: dict[str, object], folder: Path) -> int:
    from tests.planner.memory.real_step import measured_peak

    # Spelled out, so that the step is made with these options, and not with those of the plain LoRA that they equal.
    as_json = {name: json.dumps(value) for name, value in (LORA | options).items()}
    adapter = Adapter(0, (), 0.0, "float32", options=tuple(sorted(as_json.items())))
    return measured_peak(MODEL, replace(STEP, adapter=adapter), folder)


@pytest.fixture(scope="module")
def lora_peak(tmp_path_factory: pytest.TempPathFactory) -> int:
    return peak({}, tmp_path_factory.mktemp("lora"))


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_what_the_closed_form_takes_for_lora_costs_what_lora_costs(options, lora_peak, tmp_path):
    assert adapter_in_options("LORA", LORA | options, "float32", NAMES).options is None
    assert peak(options, tmp_path) == lora_peak


@pytest.mark.parametrize("options", [{"init_lora_weights": "mica"}, {"use_dora": True}], ids=str)
def test_what_costs_otherwise_is_refused_by_the_closed_form(options, lora_peak, tmp_path):
    step = replace(STEP, adapter=adapter_in_options("LORA", LORA | options, "float32", NAMES))
    assert peak(options, tmp_path) != pytest.approx(lora_peak, rel=0.01)
    with pytest.raises(UnsupportedError, match="describes the memory of LoRA"):
        estimate(MODEL, step, None)
