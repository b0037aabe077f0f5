import json
import subprocess
import sys

import pytest

from planner.cli import main

VERBS = ("can", "plan", "estimate", "launch", "merge", "chat", "gpus", "models", "recipes", "runs", "doctor")


def test_without_a_verb_the_help_is_printed(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("Usage: fitune [OPTIONS] COMMAND")


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_each_verb_has_an_example(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Examples:" in text
    assert f"\n    fitune {verb}" in text
    assert "--json" in text


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (["cna", "7b"], "No such command 'cna'", "did you mean 'can'?"),
        (["gpus", "--jsn"], "No such option: --jsn", "did you mean --json?"),
        (["can"], "Missing argument 'MODEL'", "`fitune can --help` shows what it takes"),
        (["can", "7b", "--gpu"], "Option '--gpu' requires an argument", "`fitune --help` shows what it takes"),
        (["gpus", "a", "b"], "Got unexpected extra argument(s) (b)", "`fitune gpus --help` shows what it takes"),
        (["can", "7b", "--max-length", "-3"], "--max-length is -3, but it must be at least 1", "leave it out"),
        (["can", "7b", "--lora-r", "0"], "--lora-r is 0, but it must be at least 1", "leave it out"),
    ],
)
def test_a_usage_error_is_a_sentence_and_a_hint(argv, message, hint, capsys):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}\n\nhint: {hint}")


def test_with_json_an_error_is_an_object_on_stdout_too(capsys):
    assert main(["gpus", "no-such-card", "--json"]) == 2
    out, err = capsys.readouterr()
    error = {
        "message": "no GPU has 'no-such-card' in its name or generation",
        "hint": "`fitune gpus` lists all",
        "exit_code": 2,
    }
    assert json.loads(out) == {"error": error}
    assert err == f"error: {error['message']}\n\nhint: {error['hint']}\n"


def test_errors_have_no_escape_codes_where_there_is_no_terminal(capsys):
    main(["gpus", "no-such-card"])
    assert "\x1b" not in capsys.readouterr().err


def test_planning_imports_no_torch_and_no_hub():
    code = (
        "import sys; from planner.cli import main; main(['can', '7b', '--gpu', 't4', '--json'])\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'pynvml', 'yaml', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_completion_offers_names_of_cards(monkeypatch, capsys):
    monkeypatch.setenv("_FITUNE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "fitune can 7b --gpu h100-")
    monkeypatch.setenv("COMP_CWORD", "4")
    with pytest.raises(SystemExit) as left:
        main([])
    assert left.value.code == 0
    assert "h100-sxm" in capsys.readouterr().out
