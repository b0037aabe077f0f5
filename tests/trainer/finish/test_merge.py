import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

from planner.cli import main as fitune
from planner.config.run_config import DataKnobs, LoraKnobs, RunConfig
from trainer.finish.gguf import CONVERTER
from trainer.finish.merge import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A run that ended, trained once."""
    from rich.console import Console

    from trainer.loop.progress import Lines
    from trainer.run import Job
    from trainer.run import run as train
    from trainer.supervisor.interruption import Interruption

    console, folder = Console(stderr=True), tmp_path_factory.mktemp("finished") / "run"
    config = RunConfig(
        model=str(tiny / "model"),
        data=DataKnobs(path=str(tiny / "data.jsonl")),
        method="qlora",
        quantization="nf4",
        dtype="float32",
        mixed_precision="no",
        lora=LoraKnobs(r=4, target_modules=("q_proj", "v_proj")),
        max_length=64,
        max_steps=2,
        logging_steps=1,
        learning_rate=1e-2,
        output_dir=str(folder),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        train(Job(config, Path("run.yaml")), Lines(console), Interruption(), console)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run that a test may change."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_a_merged_run_is_a_model_that_needs_nothing_else(run, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert main([str(run)]) == 0
    folder = run / "merged"
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "note: the adapter learned on nf4 weights and is merged into those they were made from" in printed.err
    assert printed.err.endswith(f"\ndone: {folder}\n")
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == [1]
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert not [path for path in run.iterdir() if path.name.startswith(".merged")]


def test_the_card_has_the_facts_of_the_run(run, tiny):
    assert main([str(run)]) == 0
    card = (run / "merged" / "README.md").read_text()
    record = json.loads((run / "record.jsonl").read_text())
    assert "library_name: transformers\n" in card
    assert "# run\n" in card
    assert f"| base model | {tiny / 'model'} |\n" in card
    assert "| method | qlora: nf4 base, rest float32, rank 4 on q_proj, v_proj |\n" in card
    assert "| data | data.jsonl, rows of up to 64 tokens |\n" in card
    assert "| steps | 2 of 2 in " in card
    assert f"| loss | {record['result']['loss']:.4g} |\n" in card
    assert " measured |\n" in card
    assert f"torch {record['environment']['packages']['torch']}" in card


def test_the_card_names_the_license_of_the_base(run, tiny, tmp_path):
    base = tmp_path / "licensed"
    shutil.copytree(tiny / "model", base)
    (base / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n")
    assert main([str(run), "--base", str(base), "--out", str(tmp_path / "out")]) == 0
    assert "license: mit\n" in (tmp_path / "out" / "README.md").read_text()


def test_json_says_what_was_written(run, tmp_path, capsys):
    assert main([str(run), "--dtype", "bfloat16", "--out", str(tmp_path / "out"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["folder"] == str(tmp_path / "out")
    assert document["dtype"] == "bfloat16"
    assert document["num_bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert document["gguf"] is None
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_adapter_without_its_run_is_merged_beside_its_folder(run, tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(run / "final", adapter)
    assert main([str(adapter)]) == 0
    assert (tmp_path / "adapter-merged" / "model.safetensors").exists()


def test_a_folder_that_is_there_is_not_overwritten(run, capsys):
    (run / "merged").mkdir()
    (run / "merged" / "mine.txt").write_text("keep me")
    assert main([str(run)]) == 2
    assert capsys.readouterr().err == (
        f"error: {run}/merged is there already\n\nhint: remove it, or choose another folder with -o\n"
    )
    assert [path.name for path in (run / "merged").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("shortage", "message"),
    [
        ("memory", "the merge needs .* of main memory, but 9.5 MiB are free"),
        ("disk", "the merged model in .* needs 20.9 MiB, but 9.5 MiB are free"),
    ],
)
def test_a_lack_of_room_is_told_before_anything_is_written(run, shortage, message, monkeypatch, capsys):
    from trainer.finish import merge

    if shortage == "memory":
        monkeypatch.setattr(merge, "available_memory_bytes", lambda: 10_000_000)
    else:
        usage = shutil.disk_usage(run)._replace(free=10_000_000)
        monkeypatch.setattr(merge.shutil, "disk_usage", lambda _: usage)
    assert main([str(run)]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (run / "merged").exists()


def test_ctrl_c_in_the_middle_leaves_nothing(run, monkeypatch, capsys):
    from trainer.finish import merge_weights

    write = merge_weights.save_file

    def write_and_be_interrupted(*arguments, **options):
        write(*arguments, **options)
        assert [path.name for path in run.glob(".merged*/*")] == ["model.safetensors"]
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(merge_weights, "save_file", write_and_be_interrupted)
    before = sorted(run.iterdir())
    assert main([str(run)]) == 128 + signal.SIGINT
    assert sorted(run.iterdir()) == before
    assert capsys.readouterr().err.endswith("stopped; nothing is left of the merge\n")


def test_what_a_killed_merge_left_is_cleared(run):
    left = run / ".merged.unfinished"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    assert main([str(run)]) == 0
    assert not left.exists()


def test_a_disk_that_fills_up_is_one_sentence(run, monkeypatch, capsys):
    from trainer.finish import merge_weights

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merge_weights, "save_file", fail)
    assert main([str(run)]) == 1
    assert "error: the merged model cannot be written to" in capsys.readouterr().err
    assert not (run / "merged").exists()


def test_gguf_comes_after_the_merge(run, tmp_path, capsys):
    (tmp_path / CONVERTER).write_text("import sys; open(sys.argv[3], 'w').write(' '.join(sys.argv[1:]))")
    assert main([str(run), "--gguf", "f16", "--llama-cpp", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["gguf"] == f"{run}/merged/merged-f16.gguf"
    assert Path(document["gguf"]).read_text().startswith(f"{run}/merged --outfile ")


def test_a_whole_model_is_only_converted(tiny, tmp_path, capsys):
    assert main([str(tiny / "model")]) == 2
    assert "holds a whole model, so there is nothing to merge" in capsys.readouterr().err
    model = tmp_path / "whole"
    shutil.copytree(tiny / "model", model)
    (tmp_path / CONVERTER).write_text("import sys; open(sys.argv[3], 'w').write('gguf')")
    assert main([str(model), "--gguf", "auto", "--llama-cpp", str(tmp_path)]) == 0
    assert (model / "whole-auto.gguf").read_text() == "gguf"


def test_the_converter_is_looked_for_before_the_merge(run, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    assert main([str(run), "--gguf", "f16"]) == 1
    assert f"llama.cpp's {CONVERTER}, which is not on the PATH" in capsys.readouterr().err
    assert not (run / "merged").exists()


def test_a_run_that_has_not_ended_is_bad_input(run, capsys):
    shutil.rmtree(run / "final")
    assert main([str(run)]) == 2
    error = capsys.readouterr().err
    assert f"error: the run in {run} has not ended, so it has no final weights" in error
    assert "or name its newest checkpoint, " in error


def test_an_adapter_that_names_no_base_asks_for_it(run, tiny, tmp_path, capsys):
    adapter = tmp_path / "adapter"
    shutil.copytree(run / "final", adapter)
    values = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**values, "base_model_name_or_path": None}))
    assert main([str(adapter)]) == 2
    assert "does not say which model it is for" in capsys.readouterr().err
    assert main([str(adapter), "--base", str(tiny / "model")]) == 0


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_a_folder_without_weights_is_bad_input(path, tmp_path, capsys):
    assert main([str(tmp_path / path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_verb_hands_its_options_to_the_trainer(monkeypatch):
    from planner.commands import merge

    calls = []
    monkeypatch.setattr(merge, "run_process", lambda argv: calls.append(argv) or 7)
    assert fitune(["merge", "runs/a", "-o", "out", "--dtype", "float16", "--gguf", "q8_0", "--json"]) == 7
    start = [sys.executable, "-m", "trainer.finish.merge", "runs/a"]
    assert calls == [[*start, "--out", "out", "--dtype", "float16", "--gguf", "q8_0", "--json"]]


def test_a_dtype_that_is_none_is_bad_input(capsys):
    assert fitune(["merge", "runs/a", "--dtype", "int4"]) == 2
    assert "int4" in capsys.readouterr().err
