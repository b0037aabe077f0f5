from pathlib import Path

import pytest

from planner.config.run_config import RunConfig
from planner.config.run_file import parse_run_file, read_run_file, write_run_file
from planner.memory.estimate import estimate
from planner.step.resolve import resolve_step
from profiles.errors import ConfigError, UnsupportedError
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model

MODEL, A100 = find_model("7b"), find_gpu("a100-80gb")
LOHA = {"type": "loha", "r": 4, "target_modules": ["q_proj", "v_proj"]}


def parsed(text: str) -> RunConfig:
    return parse_run_file("model: any\ngpu: T4\n" + text, Path("run.yaml"))


def peft_run(**peft: object) -> RunConfig:
    return RunConfig(model="any", method="peft", peft=peft)


def test_a_method_keeps_its_options_through_the_run_file(tmp_path):
    config = peft_run(**LOHA)
    write_run_file(config, tmp_path / "run.yaml")
    again = read_run_file(tmp_path / "run.yaml")
    assert again == config
    assert (again.peft.type, again.peft.options) == ("LOHA", {"r": 4, "target_modules": ["q_proj", "v_proj"]})


def test_runs_with_other_options_differ():
    assert peft_run(type="loha", r=4) != peft_run(type="loha", r=8)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("method: peft", "the peft section is missing"),
        ("method: lora\nlora: {}\npeft: {type: loha}", "the peft section is there"),
        ("method: peft\nlora: {}\npeft: {type: loha}", "the lora section is there"),
        ("method: peft\npeft: {r: 4}", "has no peft.type"),
        ("method: peft\npeft: {type: loha, rr: 4}", "LOHA has no option rr; did you mean r?"),
        ("method: peft\npeft: {type: hola}", "no method HOLA"),
        ("method: peft\nquantization: nf4\npeft: {type: loha}", "LOHA does not train on a base in nf4"),
        ("method: qlora\nquantization: nf4\nlora: {init_lora_weights: pissa}", "does not train on a base in nf4"),
        ("method: lora\nlora: {init_lora_weights: pisa}", "init_lora_weights is 'pisa'"),
    ],
)
def test_what_peft_does_not_do_is_refused_when_it_is_read(text, match):
    with pytest.raises(ConfigError, match=match):
        parsed(text)


@pytest.mark.parametrize("knobs", [{"use_rslora": True}, {"init_lora_weights": "pissa"}], ids=str)
def test_variants_that_only_begin_or_scale_otherwise_cost_what_lora_costs(knobs):
    plain, variant = (
        resolve_step(RunConfig(model="any", lora=lora), MODEL, A100) for lora in ({"r": 8}, {"r": 8, **knobs})
    )
    assert variant == plain


@pytest.mark.parametrize(
    ("config", "name"),
    [(peft_run(**LOHA), "LOHA"), (RunConfig(model="any", lora={"use_dora": True}), "DoRA")],
    ids=["LoHa", "DoRA"],
)
def test_the_closed_form_refuses_what_it_does_not_describe(config, name):
    with pytest.raises(UnsupportedError, match=f"but not of {name}"):
        estimate(MODEL, resolve_step(config, MODEL, A100), A100)


def test_lora_in_the_options_of_peft_costs_what_lora_costs():
    by_name = peft_run(type="LORA", r=8, lora_alpha=16, target_modules="all-linear")
    steps = [resolve_step(config, MODEL, A100) for config in (by_name, RunConfig(model="any", lora={"r": 8}))]
    assert steps[0] == steps[1]
