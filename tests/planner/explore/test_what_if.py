import pytest

from planner.config.run_config import LoraKnobs, RunConfig
from planner.explore.what_if import knob_effects
from planner.predict.prediction import Target, predict
from planner.units import GIB
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model

QLORA = RunConfig(model="m", method="qlora", quantization="nf4", lora=LoraKnobs(), gradient_accumulation_steps=8)


def effects_on(gpu, config=QLORA):
    target = Target(find_model("mistral-7b"), gpu, None if gpu else 64 * GIB)
    return {effect.change: effect for effect in knob_effects(predict(config, target))}


@pytest.fixture(scope="module")
def on_l4():
    return effects_on(find_gpu("l4"))


@pytest.mark.parametrize(
    "change", ["max_length 1024", "checkpoints in host memory", "optim adamw_8bit", "optim paged_adamw_8bit", "rank 8"]
)
def test_what_saves_memory_is_negative(on_l4, change):
    assert on_l4[change].bytes < 0


@pytest.mark.parametrize(
    "change", ["max_length 4096", "no checkpoints", "batch 2 x 4", "loss full", "16-bit base", "int8 base", "rank 32"]
)
def test_what_costs_memory_is_positive(on_l4, change):
    assert on_l4[change].bytes > 0


def test_the_largest_saving_comes_first(on_l4):
    sizes = [effect.bytes for effect in on_l4.values()]
    assert sizes == sorted(sizes)


def test_without_checkpoints_a_step_is_faster(on_l4):
    assert on_l4["no checkpoints"].speedup > 1.1


def test_a_cpu_has_no_host_to_move_memory_to():
    config = QLORA.model_copy(update={"dtype": "float32", "mixed_precision": "no"})
    assert not [change for change in effects_on(None, config) if "host" in change or "paged" in change]


def test_what_the_card_cannot_do_is_no_choice():
    config = QLORA.model_copy(update={"dtype": "float16", "mixed_precision": "fp16"})
    assert "int8 base" not in effects_on(find_gpu("v100"), config)
    assert "int8 base" in effects_on(find_gpu("t4"), config)


def test_the_rows_of_a_step_are_never_changed(on_l4):
    batches = [change.removeprefix("batch ").split(" x ") for change in on_l4 if change.startswith("batch")]
    assert [int(rows) * int(steps) for rows, steps in batches] == [8]
