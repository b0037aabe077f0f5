"""What an objective means for a configuration, a step, its memory and its speed."""

import json
from dataclasses import replace

import pytest
from pydantic import ValidationError

from planner.cli import main
from planner.config.run_config import LOSS_PATHS, LoraKnobs, PreferenceKnobs, RunConfig
from planner.explore.what_if import knob_effects
from planner.memory.estimate import estimate
from planner.memory.parameters import base_weight_bytes
from planner.predict.prediction import Target, predict, usual_config
from planner.search.planning import make_plan
from planner.search.request import Request
from planner.speed.step_time import step_time
from planner.step.hardware import objections
from planner.step.network import network
from planner.step.resolve import resolve_step
from profiles.errors import ConfigError
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model

A100 = find_gpu("a100-80gb")
LLAMA, QWEN, T5 = find_model("llama2-7b"), find_model("qwen2.5-0.5b"), find_model("flan-t5-base")
BEFORE = {"preference": PreferenceKnobs(precompute_ref_log_probs=True)}


def config(objective: str = "sft", method: str = "lora", **knobs: object) -> RunConfig:
    values = {"model": "m", "objective": objective, "method": method, "max_length": 512}
    values |= {"per_device_train_batch_size": 2, "lora": LoraKnobs() if method == "lora" else None}
    return RunConfig.model_validate(values | knobs)


def step(objective: str = "sft", method: str = "lora", model=LLAMA, **knobs: object):
    return resolve_step(config(objective, method, **knobs), model, A100)


@pytest.mark.parametrize("objective", ["dpo", "ipo", "orpo", "kto", "reward"])
def test_the_options_of_an_objective_are_stated_where_a_file_leaves_them_out(objective):
    assert config(objective).preference == PreferenceKnobs()


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"objective": "sft", "preference": {}}, "sft, which has no preferences"),
        ({"objective": "dpo", "loss": "full"}, "loss is full, but dpo has no such way to the loss; use fused"),
        ({"objective": "orpo", "loss": "fused"}, "loss is fused, but orpo has no such way to the loss; use full"),
        ({"objective": "dpo", "packing": True}, "dpo compares whole answers"),
        ({"objective": "kto", "per_device_train_batch_size": 1}, "kto compares the answers of a batch; use 2 or more"),
        ({"objective": "dpo", "preference": {"desirable_weight": 2}}, "no effect on dpo, only on kto"),
        ({"objective": "orpo", **BEFORE}, "precompute_ref_log_probs has no effect on orpo, only on dpo, ipo, kto"),
        ({"objective": "reward", "preference": {"beta": 0.2}}, "preference.beta has no effect on reward"),
    ],
)
def test_what_an_objective_has_no_use_for_is_refused(knobs, sentence):
    with pytest.raises(ValidationError, match=sentence):
        config(**knobs)


@pytest.mark.parametrize(
    ("objective", "rows"), [("sft", 2), ("kto", 2), ("dpo", 4), ("ipo", 4), ("orpo", 4), ("reward", 4)]
)
def test_a_pair_passes_the_model_as_two_rows(objective, rows):
    assert step(objective).micro_batch == rows


def test_the_shortest_batch_of_pairs_needs_a_mask():
    assert step("dpo", per_device_train_batch_size=1).masked
    assert not step("sft", per_device_train_batch_size=1).masked


@pytest.mark.parametrize(
    ("objective", "method", "knobs", "reference"),
    [
        ("dpo", "lora", {}, "adapter_off"),
        ("kto", "full", {}, "copy"),
        ("ipo", "full", BEFORE, "none"),
        ("orpo", "full", {}, "none"),
        ("reward", "lora", {}, "none"),
    ],
)
def test_the_reference_is_below_the_adapter_or_a_copy_or_asked_before(objective, method, knobs, reference):
    assert step(objective, method, **knobs).reference == reference


@pytest.mark.parametrize(
    ("objective", "loss"), [("dpo", "fused"), ("kto", "fused"), ("orpo", "odds_ratio"), ("reward", "score")]
)
def test_each_objective_has_its_own_way_to_the_loss(objective, loss):
    assert step(objective).loss == loss


def test_the_step_of_another_trainer_is_only_known_for_answers():
    with pytest.raises(ConfigError, match="objective is dpo, but what a step of axolotl takes is only known for sft"):
        resolve_step(config("dpo"), LLAMA, A100, "axolotl")


def test_an_encoder_has_no_preferences():
    with pytest.raises(ConfigError, match="objective is dpo, but google/flan-t5-base has an encoder"):
        step("dpo", model=T5)


def test_an_encoder_decoder_has_only_the_full_loss():
    assert objections(config(loss="fused"), T5, A100) == (
        "loss is fused, but google/flan-t5-base has an encoder, for which there is only full",
    )
    assert make_plan(Request(model=T5, gpu=A100)).config.loss == "full"


@pytest.mark.parametrize("knobs", [{"loss": "fused"}, {"loss": "full", "packing": True}, {"padding_free": True}])
def test_what_the_trainer_has_for_decoders_only_is_not_estimated_either(knobs):
    with pytest.raises(ConfigError, match="google/flan-t5-base has an encoder"):
        step(model=T5, **knobs)


def test_what_another_trainer_does_with_an_encoder_decoder_is_its_own():
    assert resolve_step(config(loss="fused"), T5, A100, "transformers").loss == "full"


def test_a_copy_of_the_reference_weighs_what_the_model_weighs():
    with_copy, without = (step("dpo", "full", **knobs) for knobs in ({}, BEFORE))
    parts = {part.name: part.bytes for part in estimate(LLAMA, with_copy, A100).components}
    assert parts["reference weights"] == base_weight_bytes(network(LLAMA, "dpo"), with_copy)
    saved = estimate(LLAMA, with_copy, A100).allocated_bytes - estimate(LLAMA, without, A100).allocated_bytes
    assert saved >= parts["reference weights"]


def test_a_reference_below_the_adapter_is_a_pass_and_no_weights():
    below, asked_before = (estimate(QWEN, step("dpo", model=QWEN, **knobs), A100) for knobs in ({}, BEFORE))
    assert "reference" in below.phases
    assert "reference" not in asked_before.phases
    assert below.phases["loss"] == asked_before.phases["loss"]


def test_a_reward_model_has_a_score_instead_of_a_head():
    untied = network(LLAMA, "reward")
    assert (untied.head.name, untied.head.out_features) == ("score", 1)
    saved = base_weight_bytes(network(LLAMA, "sft"), step()) - base_weight_bytes(untied, step("reward"))
    assert saved == pytest.approx(32000 * 4096 * 2, rel=0.001)


def test_odds_ratios_need_all_logits_and_preferences_do_not():
    orpo, dpo = (estimate(QWEN, step(objective, model=QWEN), A100) for objective in ("orpo", "dpo"))
    logits = 4 * 512 * QWEN.vocab_size * 4
    assert orpo.phases["loss"] - dpo.phases["loss"] > 2 * logits


def test_longer_answers_cost_an_encoder_decoder_less_than_longer_prompts_and_answers():
    short, answers, both = (
        estimate(T5, step(model=T5, loss="full", max_length=length, max_target_length=target), A100).allocated_bytes
        for length, target in ((512, 64), (512, 512), (1024, 512))
    )
    assert short < answers < both


def test_each_pass_of_a_reference_takes_time():
    def seconds(objective, **knobs):
        same_rows = replace(step(objective, **knobs), micro_batch=4, masked=True)
        return step_time(LLAMA, same_rows, A100).seconds_per_step

    assert seconds("dpo", **BEFORE) < seconds("dpo") < seconds("kto")
    # With kto the answers of other rows pass the model as well.
    assert seconds("dpo", **BEFORE) < seconds("kto", **BEFORE) < seconds("kto")


@pytest.mark.parametrize("objective", ["dpo", "ipo", "orpo", "kto", "reward"])
def test_each_objective_is_planned_and_predicted_alike(objective):
    request = Request(model=QWEN, gpu=A100, knobs={"objective": objective, "max_length": 512})
    plan = make_plan(request)
    assert plan.config.objective == objective
    assert plan.config.loss in LOSS_PATHS[objective]
    assert plan.config.learning_rate < 2e-4
    again = predict(plan.config, Target(QWEN, A100))
    assert again.estimate.allocated_bytes == plan.estimate.allocated_bytes


def test_no_batch_of_judged_answers_has_one_row():
    assert min(micro for micro, _ in Request(model=QWEN, gpu=A100, knobs={"objective": "kto"}).batches()) == 2


def test_what_asking_the_reference_before_would_save_is_told():
    request = Request(model=LLAMA, gpu=A100, method="full", knobs={"objective": "dpo"})
    target = Target(LLAMA, A100)
    effects = {effect.change: effect for effect in knob_effects(predict(usual_config(request), target))}
    change = effects["reference asked before training"]
    assert change.bytes < -12 * 2**30
    assert change.speedup > 1.1


def test_the_command_line_plans_an_objective(capsys):
    argv = ["can", "7b", "--gpu", "a100-80gb", "--objective", "dpo", "--method", "full", "--json"]
    assert main([*argv, "--set", "preference.precompute_ref_log_probs=false"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["config"]["objective"] == "dpo"
    assert {part["name"] for part in answer["estimate"]["components"]} >= {"reference weights", "weights"}


def test_the_answer_names_the_objective_and_its_pairs(capsys):
    main(["estimate", "7b", "--gpu", "a100-80gb", "--objective", "orpo"])
    shown = capsys.readouterr().out
    assert "objective    preferences, by ORPO" in shown
    assert "16 pairs of rows of up to 2048 tokens" in shown


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["can", "7b", "--gpu", "t4", "--objective", "dop"], "'dop' is not one of 'sft', 'dpo', 'ipo', 'orpo'"),
        (["can", "flan-t5-base", "--gpu", "t4", "--objective", "dpo"], "has an encoder"),
        (["plan", "7b", "--gpu", "t4", "--objective", "dpo", "--set", "loss=full"], "use fused"),
        (["estimate", "7b", "--gpu", "t4", "--objective", "kto", "--trainer", "unsloth"], "only known for sft"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_sentence(argv, sentence, capsys):
    assert main(argv) == 2
    assert sentence in capsys.readouterr().err


def planned(**knobs: object):
    return make_plan(Request(model=LLAMA, gpu=A100, method="full", knobs={"objective": "dpo", **knobs}))


def test_weights_stay_whole_where_the_copy_of_the_reference_would_cost_them():
    plan = planned()
    assert (plan.verdict, plan.config.dtype, plan.config.asks_reference_before) == ("fits", "float32", True)
    kept = planned(preference={"precompute_ref_log_probs": False})
    assert (kept.verdict, kept.config.dtype, kept.config.asks_reference_before) == ("fits", "bfloat16", False)


@pytest.mark.parametrize(("epochs", "before"), [(1.0, False), (3.0, True)])
def test_a_pass_over_the_data_is_worth_it_if_there_are_several(epochs, before):
    request = Request(model=QWEN, gpu=A100, method="lora", knobs={"objective": "dpo", "num_train_epochs": epochs})
    assert make_plan(request).config.asks_reference_before is before


def test_the_time_of_the_pass_before_is_shared_among_the_steps():
    seconds = {}
    for before, epochs in ((False, 1), (True, 1), (True, 4)):
        knobs = {"objective": "dpo", "num_train_epochs": epochs, "per_device_train_batch_size": 1}
        knobs |= {"preference": {"precompute_ref_log_probs": before, "beta": 0.2}, "gradient_checkpointing": True}
        plan = make_plan(Request(model=QWEN, gpu=A100, method="lora", knobs=knobs))
        assert plan.config.preference.beta == 0.2
        seconds[before, epochs] = plan.speed.seconds_per_step
    without = step_time(QWEN, step("dpo", model=QWEN, max_length=2048, **BEFORE), A100)
    assert without is not None
    assert seconds[True, 1] == pytest.approx(seconds[False, 1], rel=0.02)
    # A quarter of the reference's forward pass is left of it, of the four that a step with checkpoints takes.
    assert 0.78 < seconds[True, 4] / seconds[False, 1] < 0.88
