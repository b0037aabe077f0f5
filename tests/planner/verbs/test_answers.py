import doctest
import json
import shutil
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest

import planner
from planner.asking.question import Access
from planner.cli import main
from planner.config.run_config import RunConfig
from planner.config.run_file import write_run_file
from planner.data.lengths import DataLengths
from planner.peers.check import PeerAnswer
from planner.records.experience import Experience
from planner.report.peer_answer import peer_document
from planner.report.plan_document import plan_document, prediction_document
from planner.verbs import answers
from profiles.errors import ConfigError, InputError, UnknownGpuError, UnknownModelError, UnsupportedError
from profiles.model_catalog import resolve_model

ROOT = Path(__file__).parents[3]


AXOLOTL = ROOT / "tests" / "golden" / "peers" / "axolotl-mistral-qlora.yml"


def test_the_examples_of_the_functions_are_true(tmp_path, monkeypatch):
    shutil.copy(AXOLOTL, tmp_path / "axolotl.yml")
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(answers)
    assert results.attempted >= 12
    assert results.failed == 0


def test_importing_planner_loads_nothing():
    script = "import sys, planner; print([n for n in sys.modules if n.startswith(('pydantic', 'planner.'))])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout == "[]\n"


def test_the_functions_are_still_there_when_their_modules_are_loaded():
    assert planner.plan is answers.plan
    assert {"can", "plan", "estimate"} <= set(dir(planner))
    with pytest.raises(AttributeError, match="no attribute 'cannot'"):
        planner.cannot  # noqa: B018


@pytest.mark.parametrize(
    ("argv", "document"),
    [
        (["can", "7b", "--gpu", "t4"], lambda: plan_document(planner.can("7b", "t4"))),
        (
            ["can", "8b", "--gpu", "24GB", "--max-length", "4096", "--set", "lora.r=8"],
            lambda: plan_document(planner.can("8b", "24GB", max_length=4096, knobs={"lora": {"r": 8}})),
        ),
        (
            ["estimate", "7b", "--gpu", "t4", "--method", "qlora", "--trainer", "trl"],
            lambda: prediction_document(planner.estimate("7b", "t4", method="qlora", trainer="trl")),
        ),
    ],
    ids=["can", "can with knobs", "estimate"],
)
def test_the_functions_answer_as_the_commands_do(argv, document, capsys):
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(document()))


def test_without_a_card_the_common_ones_answer(monkeypatch):
    monkeypatch.setattr(answers, "own_card", lambda: None)
    answer = planner.can("13b")
    assert len(answer.cards) > 5
    assert answer.request.gpu in {one.gpu for one in answer.cards if one.candidate.verdict == "fits"}


def test_a_plan_follows_a_recipe():
    answer = planner.plan(recipe="phi-2-dpo")
    assert (answer.config.objective, answer.config.gpu) == ("dpo", "T4")


def test_a_configuration_is_estimated_as_its_file_is(tmp_path):
    config = planner.plan("7b", "t4").config
    write_run_file(config, tmp_path / "run.yaml")
    from_file = planner.estimate(tmp_path / "run.yaml")
    assert from_file == planner.estimate(config)
    assert from_file.config == config


def test_the_file_of_another_trainer_is_estimated_as_the_command_line_does(capsys):
    answer = planner.estimate(AXOLOTL, "24GB", max_length=4096)
    assert isinstance(answer, PeerAnswer)
    assert main(["estimate", str(AXOLOTL), "--gpu", "24GB", "--max-length", "4096", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(peer_document(answer)))


def test_the_file_of_another_trainer_says_whose_step_it_is():
    with pytest.raises(ConfigError, match="says whose step it is"):
        planner.estimate(AXOLOTL, "24GB", trainer="trl")


def test_a_server_reads_no_file_of_another_trainer():
    with pytest.raises(ConfigError, match="files of this machine are not read here"):
        planner.estimate(AXOLOTL, "24GB", access=Access(files=False))


def test_a_configuration_has_its_own_method():
    config = RunConfig(model="7b", method="full")
    with pytest.raises(ConfigError, match="a run file has its own"):
        planner.estimate(config, "h100", method="lora")


def test_bad_names_are_refused_with_a_hint():
    with pytest.raises(UnknownGpuError, match="no GPU is called 'x9000'") as refused:
        planner.can("7b", "x9000")
    assert "fitune gpus" in refused.value.hint
    with pytest.raises(ConfigError, match="none is named"):
        planner.plan(gpu="t4")
    with pytest.raises(InputError, match="no such knob"):
        planner.plan("7b", "t4", knobs={"lora": {"rank": 8}})


@pytest.mark.parametrize("verb", [planner.can, planner.plan, planner.estimate])
def test_each_parameter_says_what_it_is(verb):
    silent = [
        name
        for name, parameter in signature(verb).parameters.items()
        if name != "access"
        and not any(getattr(note, "description", None) for note in parameter.annotation.__metadata__)
    ]
    assert silent == []


def test_lengths_come_from_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr("planner.asking.question._lengths", lambda *_: DataLengths.of([300] * 100))
    answer = planner.plan("7b", "t4", data=tmp_path / "rows.jsonl")
    assert (answer.config.max_length, answer.cost.num_steps) == (320, 7)


def test_time_and_cost_follow_from_the_number_of_rows():
    answer = planner.can("7b", "a100-80gb", rows=52_000, knobs={"num_train_epochs": 3})
    assert answer.cost.num_steps == 52_000 // 16 * 3
    assert answer.cost.usd == pytest.approx(answer.cost.seconds / 3600 * answer.request.gpu.price.median_usd_per_hour)
    assert planner.can("7b", "a100-80gb").cost is None


NOTHING = Access(
    resolve=lambda name: resolve_model(name, folders=False, hub=False), experience=Experience, tracing=None
)


def test_a_server_may_close_folders_and_traces(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text("{}")
    assert planner.can("gpt2", "t4", access=NOTHING).config.model == "openai-community/gpt2"
    with pytest.raises(UnknownModelError, match="folders of this machine are not read"):
        planner.can("./gpt2", "t4", access=NOTHING)
    with pytest.raises(UnknownModelError, match="no model of the catalog is called 'no/body'"):
        planner.can("no/body", "t4", access=NOTHING)
    with pytest.raises(UnsupportedError, match="the closed form"):
        planner.estimate("7b", "t4", knobs={"method": "peft", "peft": {"type": "OFT"}}, access=NOTHING)
