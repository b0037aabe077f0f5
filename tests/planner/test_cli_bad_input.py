import json

import pytest

from planner.cli import main

CAN = ("can", "7b", "--gpu", "t4")

BAD_INPUT = {
    "unknown GPU": (
        ["can", "7b", "--gpu", "h1000"],
        "no GPU is called 'h1000'",
        "`fitune gpus` lists all names",
    ),
    "unknown model": (
        ["can", "lama2-7b", "--gpu", "t4"],
        "no model is called 'lama2-7b'; near it are llama2-7b",
        "`fitune models` lists all names",
    ),
    "size without a shape": (
        ["can", "900b", "--gpu", "t4"],
        "no reference shape is within 10% of 900b",
        "name a model, or one of the sizes",
    ),
    "folder without a model": (
        ["can", "/", "--gpu", "t4"],
        "/ has no config.json",
        "name a Hub id, or a folder that save_pretrained wrote",
    ),
    "size of nothing": (
        ["can", "0b", "--gpu", "t4"],
        "0b is not the size of a model",
        "the sizes are ",
    ),
    "unknown knob": (
        [*CAN, "--set", "max_lenght=3"],
        "--set has a key max_lenght, but there is no such knob",
        "did you mean max_length?",
    ),
    "knob that has its own argument": (
        [*CAN, "--set", "gpu=l4"],
        "--set cannot change gpu",
        "it comes from --gpu",
    ),
    "setting without a value": (
        [*CAN, "--set", "optim"],
        "--set is given 'optim', but it takes KNOB=VALUE",
        "try --set optim=adamw_8bit",
    ),
    "wrong dtype": (
        [*CAN, "--set", "dtype=float8"],
        "--set: dtype is 'float8', but it must be 'float32', 'float16' or 'bfloat16'",
        "dtype: ",
    ),
    "dtype that the card lacks": (
        [*CAN, "--set", "dtype=bfloat16", "--set", "mixed_precision=bf16"],
        "bfloat16 is only emulated on T4",
        None,
    ),
    "negative length": (
        [*CAN, "--max-length", "-1"],
        "--max-length is -1, but it must be at least 1",
        "leave it out for the default",
    ),
    "length that is no number": (
        [*CAN, "--max-length", "long"],
        "Invalid value for '--max-length': Input should be a valid integer",
        "`fitune can --help` shows what it takes",
    ),
    "rank 0": (
        [*CAN, "--lora-r", "0"],
        "--lora-r is 0, but it must be at least 1",
        "leave it out for the default",
    ),
    "rank without an adapter": (
        [*CAN, "--method", "full", "--lora-r", "8"],
        "full fine-tuning has no adapter, so lora.r has no effect",
        "leave it out, or use lora",
    ),
    "unknown method": (
        [*CAN, "--method", "dora"],
        "Invalid value for '--method': 'dora' is not one of 'auto', 'full', 'lora', 'qlora'",
        "`fitune can --help` shows what it takes",
    ),
    "batch that does not divide": (
        [*CAN, "--batch-size", "16", "--set", "per_device_train_batch_size=3"],
        "per_device_train_batch_size is 3, but the batch size 16 is not a multiple of it",
        "use 2 or 4",
    ),
    "batch that the cards cannot share": (
        [*CAN, "--num-gpus", "3", "--batch-size", "16"],
        "--batch-size is 16, but 3 cards with rows of their own share it",
        "use a multiple of 3, such as 18",
    ),
    "layout that an engine lacks": (
        [*CAN, "--num-gpus", "2", "--set", "parallel.strategy=ddp", "--set", "parallel.offload=optimizer"],
        "--set: parallel: offload is optimizer, which ddp cannot; use none",
        None,
    ),
    "unknown trainer": (
        ["estimate", "7b", "--gpu", "t4", "--trainer", "tlr"],
        "trainer is tlr, which is not described",
        "one of: fitune, trl, transformers",
    ),
    "missing run file": (
        ["launch", "missing.yaml"],
        "there is no run file missing.yaml",
        "write one with `fitune plan MODEL -o FILE`",
    ),
    "missing run file to estimate": (
        ["estimate", "missing.yaml"],
        "there is no run file missing.yaml",
        "write one with `fitune plan MODEL -o FILE`",
    ),
    "missing data": (
        ["plan", "7b", "--gpu", "t4", "--data", "missing.jsonl"],
        "there is no data file missing.jsonl",
        None,
    ),
    "missing folder of runs": (
        ["runs", "no-such-folder"],
        "there is no folder no-such-folder",
        "`fitune launch` writes its runs to output_dir",
    ),
}


@pytest.mark.parametrize(("argv", "message", "hint"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_exits_2_with_a_sentence_and_a_way_out(argv, message, hint, capsys):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    sentence, _, way_out = err.partition("\n\n")
    assert sentence.startswith(f"error: {message}")
    assert "\n" not in sentence.rstrip("\n")
    assert way_out.startswith(f"hint: {hint}") if hint else way_out == ""


RUN_FILES = {
    "broken YAML": ("model: [", "line 1"),
    "empty file": ("", "is empty"),
    "no run file at all": ("just words", "holds no `key: value` lines"),
    "unknown key": ("model: llama2-7b\nmax_lenght: 3\n", "has a key max_lenght"),
    "wrong dtype": ("model: llama2-7b\ndtype: float8\n", "dtype is 'float8'"),
    "negative length": ("model: llama2-7b\nmax_length: -3\n", "max_length is -3"),
    "rank 0": ("model: llama2-7b\nlora: {r: 0}\n", "lora.r is 0"),
    "contradiction": (
        "model: llama2-7b\nmethod: full\nlora: {r: 8}\n",
        "method is full, but the lora section",
    ),
    "newer version": ("version: 99\nmodel: llama2-7b\n", "has version 99"),
    "unknown model": ("model: no-model\nlora: {r: 8}\n", "no model is called 'no-model'"),
    "unknown GPU": ("model: llama2-7b\ngpu: h1000\nlora: {r: 8}\n", "no GPU is called 'h1000'"),
}


@pytest.mark.parametrize("verb", ["estimate", "launch"])
@pytest.mark.parametrize(("text", "message"), RUN_FILES.values(), ids=RUN_FILES.keys())
def test_a_bad_run_file_exits_2_and_names_what_is_wrong(verb, text, message, tmp_path, capsys):
    run_file = tmp_path / "run.yaml"
    run_file.write_text(text)
    assert main([verb, str(run_file)]) == 2
    out, err = capsys.readouterr()
    assert (out, err[:7]) == ("", "error: ")
    assert message in err
    assert "Traceback" not in err


DATA_FILES = {
    "empty data": ("empty.jsonl", "", "has no rows"),
    "wrong format": ("rows.jsonl", '{"a": 1}\n', "belong to no known format"),
    "unknown suffix": ("rows.xml", "<a/>", "is not a data file that fitune reads"),
    "broken JSON": ("rows.jsonl", '{"text": "a"}\n{"text": \n', "line 2"),
    "empty text": ("rows.jsonl", '{"text": "a"}\n{"text": ""}\n', "line 2: text is empty"),
}


@pytest.mark.parametrize(("name", "text", "message"), DATA_FILES.values(), ids=DATA_FILES.keys())
def test_bad_data_exits_2_and_names_what_is_wrong(name, text, message, tmp_path, capsys):
    (tmp_path / name).write_text(text)
    assert main(["plan", "7b", "--gpu", "t4", "--data", str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err


def test_the_error_is_the_one_json_object(capsys):
    assert main(["estimate", "missing.yaml", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error == {
        "message": "there is no run file missing.yaml",
        "hint": "write one with `fitune plan MODEL -o FILE`",
        "exit_code": 2,
    }
