import json
from dataclasses import replace

import pytest

from planner.cli import main
from planner.config.run_config import DataKnobs, RunConfig, SampleKnobs
from planner.records.run_record import RECORD_FILE
from planner.records.run_store import recall, remember
from tests.planner.run_records import LORA, made_up_run

SECRETS = ("/home/jane", "prompt of mine", "jane-laptop", "secret-model")


@pytest.fixture
def store(tmp_path, monkeypatch):
    path = tmp_path / "store.db"
    monkeypatch.setenv("FITUNE_STORE", str(path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    return path


def private_run(number=0):
    config = RunConfig.model_validate(
        LORA.model_dump()
        | {
            "model": "/home/jane/secret-model",
            "data": DataKnobs(path="/home/jane/chats.jsonl"),
            "output_dir": "/home/jane/runs/a",
            "samples": SampleKnobs(prompts=("prompt of mine",)),
        }
    )
    run = made_up_run(number, folder="/home/jane/runs/a")
    environment = run.record.environment.model_copy(update={"platform": "Linux-6.1-jane-laptop"})
    shape = run.shape.model_copy(update={"hf_id": "/home/jane/secret-model", "sources": ("/home/jane/config.json",)})
    record = run.record.model_copy(update={"config": config, "environment": environment})
    return type(run)(record, shape, run.card, folder=run.folder)


def exported(store, runs):
    remember(runs, store)
    assert main(["runs", "--export", "mine.jsonl"]) == 0
    return (store.parent / "mine.jsonl").read_text()


def test_runs_of_the_store_are_listed_and_those_of_folders_not_twice(store, tmp_path, capsys):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    run = made_up_run(1, folder=str(folder))
    (folder / RECORD_FILE).write_text(run.record.model_dump_json() + "\n")
    remember([run, made_up_run(2, folder=str(tmp_path / "gone")), made_up_run(3, origin="imported")], store)
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["runs/a", "gone", "imported"]


def test_a_folder_that_is_named_is_listed_alone(store, tmp_path, capsys):
    remember([made_up_run(2)], store)
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""


def test_a_store_that_cannot_be_read_stops_no_listing_and_no_plan(store, capsys):
    store.write_bytes(b"no database " * 1000)
    assert main(["runs"]) == 0
    assert "cannot be read" in capsys.readouterr().err
    assert main(["can", "7b", "--gpu", "t4", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["verdict"] == "fits"
    assert any(note.endswith("the answer does without earlier runs") for note in answer["notes"])


def test_can_counts_in_what_runs_on_such_a_card_took(store, capsys):
    remember([made_up_run(n, memory=1.1) for n in range(3)], store)
    assert main(["can", "7b", "--gpu", "t4", "--max-length", "512", "--method", "lora"]) == 0
    out = capsys.readouterr().out
    assert "after 3 earlier lora runs on T4, 7.4% more memory than by the formulas is counted in" in " ".join(
        out.split()
    )
    assert "as runs here took" in out


def test_an_export_says_nothing_that_is_private(store):
    text = exported(store, [private_run()])
    assert [secret for secret in SECRETS if secret in text] == []
    assert '"process_bytes"' in text


def test_a_private_model_that_is_called_like_a_public_one_keeps_its_own_shape(store):
    run = made_up_run()
    narrow = run.shape.model_copy(update={"hf_id": "llama2-7b", "num_hidden_layers": 3})
    text = exported(store, [replace(run, shape=narrow)])
    shape = json.loads(text)["shape"]
    assert (shape["hf_id"], shape["num_hidden_layers"]) == ("private/llama", 3)


def test_there_is_no_export_of_nothing(store, tmp_path, capsys):
    assert main(["runs", "--export", "mine.jsonl"]) == 2
    assert "the store has no run of this machine" in capsys.readouterr().err
    assert not (tmp_path / "mine.jsonl").exists()


def test_an_export_overwrites_nothing(store, tmp_path, capsys):
    (tmp_path / "mine.jsonl").write_text("precious")
    remember([made_up_run()], store)
    assert main(["runs", "--export", "mine.jsonl"]) == 2
    assert (tmp_path / "mine.jsonl").read_text() == "precious"


def test_what_is_exported_can_be_imported_elsewhere_and_taught_there(store, monkeypatch, capsys):
    exported(store, [private_run(n) for n in range(3)])
    elsewhere = store.with_name("elsewhere.db")
    monkeypatch.setenv("FITUNE_STORE", str(elsewhere))
    assert main(["runs", "--import", "mine.jsonl"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 runs imported"
    assert main(["runs", "--import", "mine.jsonl"]) == 0
    assert capsys.readouterr().out == "0 runs imported, 3 were there already\n"
    assert {run.origin for run in recall(elsewhere)} == {"imported"}
    assert main(["estimate", "7b", "--gpu", "t4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["experience"]["num_runs"] == 3


def test_own_runs_that_come_back_are_known(store, capsys):
    exported(store, [made_up_run(1)])
    assert main(["runs", "--import", "mine.jsonl"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 runs imported, 1 was there already"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda line: line | {"card": "GTX 9999"}, "no GPU is called 'GTX 9999'"),
        (lambda line: measured(line, process_bytes=10**15), "but T4 has"),
        (lambda line: measured(line, allocated_bytes=1, reserved_bytes=1, process_bytes=1), "times what is predicted"),
        (lambda line: measured(line, tokens_per_second=1e9), "its speed is"),
        (lambda line: measured(line, allocated_bytes=2**33, reserved_bytes=2**32), "are not in this order"),
        (lambda line: in_record(line, time="2999-01-01T00:00:00+00:00"), "not one of the past"),
        (lambda line: in_record(line, time="yesterday"), "no ISO 8601"),
        (lambda line: line | {"shape": {}}, "shape.hf_id: Field required"),
        (lambda line: line | {"shape": line["shape"] | {"num_hidden_layers": 10**9}}, "shape.num_hidden_layers"),
        (lambda line: line | {"more": 1}, "more: Extra inputs are not permitted"),
        (lambda line: line | {"card": "CPU"}, "it was planned for T4, but ran on CPU"),
    ],
    ids=["card", "memory", "bytes", "speed", "order", "future", "time", "shape", "layers", "key", "cpu"],
)
def test_a_foreign_run_that_cannot_be_is_refused_with_the_reason(store, tmp_path, capsys, change, why):
    good = json.loads(exported(store, [made_up_run(1), made_up_run(2)]).splitlines()[0])
    capsys.readouterr()
    (tmp_path / "theirs.jsonl").write_text(json.dumps(change(good)) + "\n")
    assert main(["runs", "--import", "theirs.jsonl"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("refused: theirs.jsonl, line 1: ")
    assert why in err


def test_names_and_texts_of_others_do_not_come_in(store, tmp_path, monkeypatch, capsys):
    line = json.loads(exported(store, [made_up_run(1)]))
    config = line["record"]["config"] | {"model": "\x1b[2Jevil", "output_dir": "/etc"}
    environment = line["record"]["environment"] | {"gpu": "\x1b]0;evil\x07"}
    line = in_record(line, config=config, environment=environment) | {"shape": line["shape"] | {"hf_id": "evil"}}
    (tmp_path / "theirs.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setenv("FITUNE_STORE", str(tmp_path / "elsewhere.db"))
    assert main(["runs", "--import", "theirs.jsonl"]) == 0
    assert main(["runs", "--json"]) == 0
    out = capsys.readouterr().out
    assert "evil" not in out
    assert "/etc" not in out
    assert "private/llama" in out


def test_one_bad_line_costs_no_other(store, tmp_path, monkeypatch, capsys):
    good = exported(store, [made_up_run(1)])
    (tmp_path / "theirs.jsonl").write_text(f"no json\n\n{good}")
    monkeypatch.setenv("FITUNE_STORE", str(tmp_path / "elsewhere.db"))
    assert main(["runs", "--import", "theirs.jsonl", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert (answer["imported"], [one["line"] for one in answer["refused"]]) == (1, [1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--export", "a", "--import", "b"], "two things"),
        (["--import", "missing.jsonl"], "missing.jsonl cannot be read"),
        (["--export", "no/such/folder/x"], "cannot be written"),
        ([".", "--export", "x"], "are about the store"),
    ],
    ids=["both", "missing", "folder", "place"],
)
def test_bad_input_is_told(store, capsys, options, said):
    remember([made_up_run()], store)
    assert main(["runs", *options]) == 2
    assert said in capsys.readouterr().err


def measured(line, **fields):
    return in_record(line, measured=line["record"]["measured"] | fields)


def in_record(line, **fields):
    return line | {"record": line["record"] | fields}
