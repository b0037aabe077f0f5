import json
import subprocess
import sys
from pathlib import Path

import pytest

from planner.asking.subject import configuration
from planner.asking.wishes import Wishes
from planner.cli import main
from planner.predict import traced

COHERE = {
    "model_type": "cohere",
    "architectures": ["CohereForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 2000,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


@pytest.fixture
def cohere(tmp_path: Path) -> Path:
    """A folder with an architecture that the closed form does not describe."""
    (tmp_path / "config.json").write_text(json.dumps(COHERE))
    return tmp_path


def fitune(*argv: object) -> subprocess.CompletedProcess[str]:
    code = "import sys; from planner.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_undescribed_architecture_goes_to_the_trace_by_itself(cohere):
    run = fitune("estimate", cohere, "--gpu", "t4", "--json")
    found = json.loads(run.stdout)
    assert run.returncode == 0
    assert (found["by"], found["model"], found["verdict"]) == ("trace", str(cohere), "fits")
    assert run.stderr == (
        "note: model_type is 'cohere', an architecture that fitune has no description of; tracing the step instead\n"
    )


def test_an_undescribed_encoder_decoder_begins_with_the_loss_that_it_has(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bart", "is_encoder_decoder": true}')
    config, target = configuration(str(tmp_path), "t4", Wishes())
    assert (config.loss, target.model) == ("full", None)
    (tmp_path / "config.json").write_text('{"model_type": "cohere"}')
    assert configuration(str(tmp_path), "t4", Wishes())[0].loss == "fused"


@pytest.mark.slow
def test_a_method_that_only_a_trace_knows_is_planned_with_what_the_trace_finds(tmp_path):
    run_file = tmp_path / "run.yaml"
    asked = ("--gpu", "t4", "--method", "peft", "--set", "peft.type=IA3", "--max-length", 512, "--json")
    plan = fitune("plan", "SmolLM2-135M", *asked, "-o", run_file)
    found = json.loads(plan.stdout)
    assert (plan.returncode, found["verdict"], found["config"]["peft"]["type"]) == (0, "fits", "IA3")
    assert "was traced" in found["notes"][-1]
    again = json.loads(fitune("estimate", run_file, "--json").stdout)
    assert again["process_bytes"] == found["estimate"]["process_bytes"]


def test_exact_traces_what_the_closed_form_describes():
    run = fitune("estimate", "SmolLM2-135M", "--gpu", "t4", "--exact", "--json")
    exact = json.loads(run.stdout)
    assert (run.returncode, run.stderr, exact["by"]) == (0, "", "trace")
    assert exact["tokens_per_second"] > 0


def test_a_trace_needs_its_packages(monkeypatch, capsys):
    monkeypatch.setattr(traced.importlib.util, "find_spec", lambda name: None)
    assert main(["estimate", "SmolLM2-135M", "--gpu", "t4", "--exact"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: a trace needs torch, transformers, peft, trl",
        "",
        "hint: pip install 'fitune[train]'",
    ]


def test_a_trace_that_fails_says_why(monkeypatch, capsys):
    monkeypatch.setattr(traced, "TRACER", "calibration.no_such_module")
    assert main(["estimate", "SmolLM2-135M", "--gpu", "t4", "--exact"]) == 1
    said = capsys.readouterr().err
    assert "the trace failed: " in said
    assert "no_such_module" in said


def test_what_is_no_model_is_no_question_for_a_trace(tmp_path):
    run = fitune("estimate", tmp_path / "nothing", "--gpu", "t4")
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
