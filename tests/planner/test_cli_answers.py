import json
import re
from pathlib import Path

import pytest

import planner
from planner.cli import main
from planner.config.run_config import RunConfig
from planner.config.run_file import read_run_file
from planner.search.common_cards import COMMON_CARDS
from profiles.errors import EnvironmentFault

README = (Path(planner.__path__[0]) / "README.md").read_text("utf-8")

ESTIMATE_KEYS = {
    "model",
    "gpu",
    "fits",
    "verdict",
    "allocated_bytes",
    "reserved_bytes",
    "process_bytes",
    "interval_bytes",
    "host_bytes",
    "usable_bytes",
    "binding_phase",
    "phases",
    "components",
}
PLAN_KEYS = {"verdict", "config", "estimate", "tokens_per_second", "alternatives", "nearest"}


@pytest.fixture(autouse=True)
def no_card(monkeypatch):
    def no_driver():
        raise EnvironmentFault("no NVIDIA driver answers on this machine")

    monkeypatch.setattr("profiles.detect.detect_usable_gpus", no_driver)


def answer(capsys, *argv):
    """Exit code and the one JSON object on stdout."""
    code = main([*argv, "--json"])
    return code, json.loads(capsys.readouterr().out)


def check_estimate(document):
    assert document.keys() >= ESTIMATE_KEYS
    assert sum(part["bytes"] for part in document["components"]) == document["allocated_bytes"]
    assert document["phases"][document["binding_phase"]] == max(document["phases"].values())
    low, high = document["interval_bytes"]
    assert low <= document["process_bytes"] <= high
    assert document["allocated_bytes"] <= document["reserved_bytes"] <= document["process_bytes"]
    assert document["fits"] == (document["verdict"] == "fits")


def check_plan(document):
    assert document.keys() >= PLAN_KEYS
    check_estimate(document["estimate"])
    configs = [document["config"], *(other["config"] for other in document["alternatives"])]
    for config in configs:
        assert config is None or RunConfig.model_validate(config)


@pytest.mark.parametrize("argv", [("can", "7b", "--gpu", "t4"), ("plan", "mistral-7b", "--gpu", "rtx3090")])
def test_a_model_that_fits_returns_0_and_a_configuration(argv, capsys):
    code, document = answer(capsys, *argv)
    check_plan(document)
    assert (code, document["verdict"], document["nearest"]) == (0, "fits", [])
    assert document["config"]["gpu"] == document["gpu"]


def test_a_model_that_does_not_fit_returns_1_and_what_would(capsys):
    code, document = answer(capsys, "can", "70b", "--gpu", "t4")
    check_plan(document)
    assert (code, document["verdict"], document["config"]) == (1, "no", None)
    assert document["nearest"][0]["verdict"] == "fits"
    assert "more than the" in document["shortfall"]


def test_plan_tells_why_every_other_configuration_lost(capsys):
    _, document = answer(capsys, "plan", "7b", "--gpu", "t4")
    assert all(loser["reason"] and RunConfig.model_validate(loser["config"]) for loser in document["losers"])
    assert len(document["losers"]) > 100


def test_without_a_card_the_common_ones_are_compared(capsys):
    code, document = answer(capsys, "can", "13b")
    check_plan(document)
    assert code == 0
    assert [card["gpu"] for card in document["cards"]] == list(COMMON_CARDS)
    prices = [card["usd_per_hour"] for card in document["cards"] if card["verdict"] == "fits"]
    chosen = next(card for card in document["cards"] if card["gpu"] == document["gpu"])
    assert chosen["usd_per_hour"] == min(prices)


def test_the_effective_batch_size_is_kept(capsys):
    _, document = answer(capsys, "plan", "7b", "--gpu", "t4", "--batch-size", "24")
    assert RunConfig.model_validate(document["config"]).effective_batch_size == 24


@pytest.mark.parametrize(
    ("argv", "knob", "value"),
    [
        (["--max-length", "777"], "max_length", 777),
        (["--method", "qlora"], "quantization", "nf4"),
        (["--set", "method=qlora"], "method", "qlora"),
        (["--set", "optim=paged_adamw_8bit"], "optim", "paged_adamw_8bit"),
        (["--set", "seed=7"], "seed", 7),
    ],
)
def test_what_the_user_gives_is_kept(argv, knob, value, capsys):
    _, document = answer(capsys, "plan", "7b", "--gpu", "t4", *argv)
    assert document["config"][knob] == value


def test_the_rank_is_kept(capsys):
    _, document = answer(capsys, "can", "7b", "--gpu", "t4", "--lora-r", "64")
    assert document["config"]["lora"]["r"] == 64


def test_estimate_has_the_keys_of_the_contract(capsys):
    code, document = answer(capsys, "estimate", "7b", "--gpu", "a100-80gb")
    check_estimate(document)
    assert code == 0
    assert document["config"]["method"] == "lora"
    assert "knobs" not in document


def test_estimate_of_what_does_not_fit_returns_1(capsys):
    code, document = answer(capsys, "estimate", "7b", "--gpu", "t4", "--method", "full")
    assert (code, document["verdict"]) == (1, "no")


def test_trainers_differ(capsys):
    _, ours = answer(capsys, "estimate", "7b", "--gpu", "l4", "--method", "qlora")
    _, plain = answer(capsys, "estimate", "7b", "--gpu", "l4", "--method", "qlora", "--trainer", "transformers")
    assert plain["allocated_bytes"] > ours["allocated_bytes"]


def test_explain_says_what_each_knob_would_change(capsys):
    _, document = answer(capsys, "estimate", "7b", "--gpu", "a100-80gb", "--explain")
    effects = {effect["change"]: effect["bytes"] for effect in document["knobs"]}
    assert effects["nf4 base"] < effects["int8 base"] < 0 < effects["no checkpoints"]
    assert effects["max_length 1024"] < 0 < effects["max_length 4096"]


def test_explain_prints_the_arithmetic_of_each_component(capsys):
    assert main(["estimate", "7b", "--gpu", "a100-80gb", "--explain"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "32 layers x 1 x 2048 tokens x 4096 x 2 B" in text
    assert "If one knob alone were turned:" in text


@pytest.mark.parametrize("gpu", ["t4", "rtx 3090", "16GB"])
def test_estimate_agrees_with_the_plan_that_wrote_the_file(gpu, tmp_path, capsys):
    run_file = tmp_path / "run.yaml"
    _, plan = answer(capsys, "plan", "mistral-7b", "--gpu", gpu, "-o", str(run_file))
    _, estimate = answer(capsys, "estimate", str(run_file))
    assert estimate["config"] == plan["config"]
    assert {key: estimate[key] for key in ESTIMATE_KEYS} == plan["estimate"]


def test_the_run_file_says_what_was_predicted(tmp_path, capsys):
    run_file = tmp_path / "run.yaml"
    assert main(["plan", "llama2-7b", "--gpu", "t4", "-o", str(run_file)]) == 0
    first, second, *_ = run_file.read_text().splitlines()
    assert re.fullmatch(r"# fitune plan of \d{4}-\d\d-\d\d: meta-llama/Llama-2-7b-hf on T4\.", first)
    assert re.fullmatch(r"# Predicted: .* GiB \(.* to .* GiB\) of 14\.6 GiB, the peak in the \w+ phase\. .*", second)
    assert capsys.readouterr().err.endswith(f"{run_file} is written. Next: fitune launch {run_file}\n")


def test_a_file_is_not_overwritten_unless_forced(tmp_path, capsys):
    run_file = tmp_path / "run.yaml"
    run_file.write_text("mine")
    assert main(["plan", "7b", "--gpu", "t4", "-o", str(run_file)]) == 2
    assert capsys.readouterr().err == f"error: there is a file {run_file} already\n\nhint: --force overwrites it\n"
    assert run_file.read_text() == "mine"
    assert main(["plan", "7b", "--gpu", "t4", "-o", str(run_file), "--force"]) == 0
    assert read_run_file(run_file).gpu == "T4"


def test_nothing_is_written_if_nothing_fits(tmp_path, capsys):
    run_file = tmp_path / "run.yaml"
    assert main(["plan", "70b", "--gpu", "t4", "-o", str(run_file)]) == 1
    assert not run_file.exists()
    assert capsys.readouterr().err.endswith(f"{run_file} is not written: nothing fits\n")


def test_without_a_card_a_plan_is_for_the_cpu(capsys):
    assert main(["plan", "pythia-70m", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["gpu"] is None
    assert err == "no NVIDIA driver answers on this machine; the answer is for its CPU\n"


def test_lengths_come_from_the_data(tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps({"text": "x" * 3 * length}) for length in (10, 100, 400)))
    _, document = answer(capsys, "can", "7b", "--gpu", "t4", "--data", str(data))
    assert document["config"]["max_length"] == 448
    assert document["config"]["data"]["path"] == str(data)
    assert document["cost"]["num_steps"] == 1


@pytest.mark.parametrize(
    "verdict_line", ["Yes: 7b (meta-llama/Llama-2-7b-hf, 6.74B parameters) fits one T4 with LoRA."]
)
def test_the_verdict_comes_first(verdict_line, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    main(["can", "7b", "--gpu", "t4"])
    assert capsys.readouterr().out.startswith(verdict_line)


def test_the_answer_ends_with_the_next_command(capsys):
    main(["can", "7b", "--gpu", "t4", "--max-length", "1024", "--set", "seed=1"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "Next: fitune plan 7b --gpu T4 --max-length 1024 --set seed=1 --data DATA.jsonl -o run.yaml"


@pytest.mark.parametrize("width", [50, 60, 80, 120])
@pytest.mark.parametrize(
    "argv",
    [
        ["can", "7b", "--gpu", "t4"],
        ["can", "70b", "--gpu", "t4"],
        ["can", "13b"],
        ["plan", "mistral-7b", "--gpu", "a100-80gb"],
        ["estimate", "7b", "--gpu", "l4", "--explain"],
    ],
    ids=" ".join,
)
def test_only_commands_are_wider_than_the_terminal(argv, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    main(argv)
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if len(line) > width and not line.startswith("Next: ")]
    assert not [line for line in lines if line != line.rstrip()]


def test_colors_need_a_terminal_and_no_objection(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    main(["can", "7b", "--gpu", "t4"])
    assert "\x1b[" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    main(["can", "7b", "--gpu", "t4"])
    assert "\x1b[3" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [["can", "13b"], ["plan", "7b", "--gpu", "t4"], ["estimate", "7b", "--gpu", "t4", "--explain"], ["doctor"]],
    ids=" ".join,
)
def test_every_key_is_documented(argv, capsys):
    _, document = answer(capsys, *argv)
    rows = [row for value in document.values() if isinstance(value, list) for row in value if isinstance(row, dict)]
    keys = document.keys() | {key for row in rows for key in row}
    assert not [key for key in keys if f"`{key}`" not in README]
