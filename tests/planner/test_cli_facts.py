import json

import pytest

from planner.cli import main
from planner.machine.doctor import Finding
from profiles.gpu_catalog import all_gpus
from profiles.model_catalog import all_models


def test_gpus_lists_every_card_once(capsys):
    assert main(["gpus"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(all_gpus())


def test_gpus_takes_part_of_a_name(capsys):
    assert main(["gpus", "Turing"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[0] == "GPU"
    assert any(row.split()[0] == "T4" for row in rows)
    assert len(rows) < 10


@pytest.mark.parametrize("width", [30, 50, 80, 200])
@pytest.mark.parametrize("verb", ["gpus", "models"])
def test_tables_fit_the_terminal(verb, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main([verb]) == 0
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= width


def test_gpus_json_has_all_facts_with_sources(capsys):
    assert main(["gpus", "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)["gpus"]
    assert len(cards) == len(all_gpus())
    assert all(card["sources"] and card["memory_bytes"] > 0 and "bf16" in card["supports"] for card in cards)


def test_models_json_has_all_facts_with_sources(capsys):
    assert main(["models", "--json"]) == 0
    shapes = json.loads(capsys.readouterr().out)["models"]
    assert {shape["hf_id"] for shape in shapes} == {model.hf_id for model in all_models()}
    assert all(shape["sources"] and shape["num_parameters"]["total"] > 0 for shape in shapes)


def test_models_are_sorted_by_size(capsys):
    main(["models", "pythia", "--json"])
    sizes = [shape["num_parameters"]["total"] for shape in json.loads(capsys.readouterr().out)["models"]]
    assert sizes == sorted(sizes)
    assert len(sizes) > 3


def test_models_without_a_match_is_bad_input(capsys):
    assert main(["models", "no-such-model"]) == 2
    assert capsys.readouterr().err.startswith("error: no model has 'no-such-model' in its name or architecture\n")


HEALTHY = Finding("disk", "ok", "100 GiB free")
SICK = Finding("torch", "problem", "not installed", "pip install 'fitune[train]'")


@pytest.mark.parametrize(("findings", "exit_code"), [([HEALTHY], 0), ([HEALTHY, SICK], 1)])
def test_doctor_returns_1_if_something_blocks_training(findings, exit_code, monkeypatch, capsys):
    monkeypatch.setattr("planner.machine.doctor.examine", lambda folder: findings)
    assert main(["doctor", "--json"]) == exit_code
    said = json.loads(capsys.readouterr().out)
    assert said["ready"] is (exit_code == 0)
    assert [finding["subject"] for finding in said["findings"]] == [finding.subject for finding in findings]


def test_doctor_prints_the_cure_below_the_problem(monkeypatch, capsys):
    monkeypatch.setattr("planner.machine.doctor.examine", lambda folder: [HEALTHY, SICK])
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out == (
        "  ok       disk   100 GiB free\n"
        "  problem  torch  not installed\n"
        "                  pip install 'fitune[train]'\n"
        "\n"
        "1 problem to cure before this machine can train.\n"
    )
