import pytest

from planner.config.run_config import LoraKnobs, RunConfig
from planner.step.resolve import resolve_step
from profiles.errors import ConfigError
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model
from profiles.trainer import all_trainers

T4, A100 = find_gpu("t4"), find_gpu("a100-40gb")
LLAMA, GROUPED = find_model("llama2-7b"), find_model("mistral-7b")


def config(**knobs: object) -> RunConfig:
    settings = {"model": "m", "method": "lora", "lora": LoraKnobs(), "max_length": 1024} | knobs
    return RunConfig.model_validate(settings)


def kernel(model, gpu, trainer="fitune", **knobs):
    step = resolve_step(config(**knobs), model, gpu, trainer)
    return step.attention, step.expand_kv


FP16 = {"dtype": "float16", "mixed_precision": "fp16"}


def test_ampere_runs_flash_on_rows_that_are_not_padded():
    assert kernel(GROUPED, A100) == ("flash", False)


def test_a_mask_rules_out_flash_and_repeats_keys():
    assert kernel(GROUPED, A100, per_device_train_batch_size=4) == ("efficient", True)


@pytest.mark.parametrize("knob", ["packing", "padding_free"])
def test_documents_of_one_row_are_kept_apart_by_a_mask_or_by_a_kernel_that_knows_them(knob):
    joined = {knob: True, "per_device_train_batch_size": 4, "max_length": 512}
    step = resolve_step(config(**joined), GROUPED, A100)
    assert (step.attention, step.masked, step.micro_batch, step.seq_len) == ("efficient", True, 1, 2048)
    step = resolve_step(config(**joined, attn_implementation="flash_attention_2"), GROUPED, A100)
    assert (step.attention, step.masked, step.micro_batch, step.seq_len) == ("flash", False, 4, 512)


def test_one_row_without_padding_is_a_row_as_any_other_and_a_packed_one_is_not():
    assert kernel(GROUPED, A100, padding_free=True) == ("flash", False)
    assert kernel(GROUPED, A100, packing=True) == ("efficient", True)


def test_joined_rows_are_evaluated_as_one_row():
    data = {"path": "x", "eval_fraction": 0.1}
    joined = {"packing": True, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 3}
    assert resolve_step(config(data=data, **joined), GROUPED, A100).eval_batch == 1


def test_a_window_shorter_than_the_row_is_a_mask():
    assert kernel(GROUPED, A100, max_length=8192) == ("efficient", True)


def test_float32_rules_out_flash():
    assert kernel(LLAMA, A100, dtype="float32", mixed_precision="no")[0] == "efficient"


def test_grouped_heads_on_a_t4_build_all_scores_unless_the_trainer_repeats_keys():
    assert kernel(GROUPED, T4, "transformers", **FP16) == ("math", False)
    assert kernel(GROUPED, T4, "fitune", **FP16) == ("efficient", True)
    assert kernel(LLAMA, T4, "transformers", **FP16) == ("efficient", True)


def test_bfloat16_on_a_t4_builds_all_scores():
    assert kernel(LLAMA, T4)[0] == "math"


def test_one_broadcast_head_of_keys_builds_all_scores():
    assert kernel(find_model("falcon-7b"), A100)[0] == "math"


def test_eager_is_eager_everywhere():
    assert kernel(LLAMA, A100, attn_implementation="eager") == ("eager", False)


@pytest.mark.parametrize(
    ("trainer", "dtype", "upcast"),
    [("fitune", "float32", False), ("trl", "bfloat16", False), ("axolotl", "float32", False)],
)
def test_trainers_differ_in_adapters_and_upcast_on_a_quantized_base(trainer, dtype, upcast):
    step = resolve_step(config(method="qlora", quantization="nf4"), LLAMA, A100, trainer)
    assert step.adapter.dtype == dtype
    assert step.kbit_upcast is upcast


def test_all_linear_names_every_module_but_the_head():
    step = resolve_step(config(), LLAMA, A100)
    assert step.adapter.targets == (
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    )  # fmt: skip


def test_a_target_that_the_model_lacks_is_refused_with_those_it_has():
    with pytest.raises(ConfigError, match="target_modules names c_attn, which no Linear module") as error:
        resolve_step(config(lora=LoraKnobs(target_modules=("c_attn",))), LLAMA, A100)
    assert "q_proj" in error.value.hint


def test_an_unknown_trainer_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean axolotl"):
        resolve_step(config(), LLAMA, A100, "axolot")


def test_accumulation_keeps_gradients():
    assert resolve_step(config(gradient_accumulation_steps=4), LLAMA, A100).gradients_persist
    assert not resolve_step(config(), LLAMA, A100).gradients_persist


@pytest.mark.parametrize("name", all_trainers())
def test_every_trainer_has_a_source(name):
    assert all_trainers()[name].source
