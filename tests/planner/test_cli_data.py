import json

import pytest

from planner.cli import main

USER, ANSWER = {"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes rows into chats.jsonl in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def write(*rows):
        lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
        (tmp_path / "chats.jsonl").write_bytes(b"\n".join(lines))
        return "chats.jsonl"

    return write


BAD = """\
No: chats.jsonl: 7 rows in the format messages; 3 cannot be trained on, so a launch would refuse it.

Cannot be trained on:
  line 3  not JSON: Expecting value at character 9
  line 4  not UTF-8 text: invalid start byte at byte 11 of the line
  line 7  no turn of the conversation is the assistant's, so there is nothing to learn from

Can be trained on, but is rarely meant:
  1  duplicate: line 2, the same as line 1
  1  empty answer: line 5, turn 2, the assistant's, is empty
  1  roles do not alternate: line 6, turn 2 is the user's, after one of the user

  learned      answers; which of them depends on the model's chat template
  tokens       about 15
  rows         about 50% up to 4, 90% up to 5, 95% up to 5, 99% up to 5, the longest 5
  max_length   64: cuts no row; the longest has 5 tokens

  max_length  rows cut  tokens kept
          64         0       100.0%
         512         0       100.0%

note: no model is named; every 3 characters are taken for a token; --model counts them
"""


def test_what_is_wrong_with_a_file_is_told_row_by_row(file, capsys):
    rows = (
        {"messages": [USER, ANSWER]},
        {"messages": [USER, ANSWER]},
        b'{"text":',
        b'{"text": "\xff"}',
        {"messages": [USER, {"role": "assistant", "content": ""}]},
        {"messages": [USER, USER, ANSWER]},
        {"messages": [USER]},
    )
    assert main(["data", file(*rows)]) == 1
    assert capsys.readouterr() == (BAD, "")


def test_without_the_tokenizer_the_way_to_it_is_told(file, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["data", file({"text": "One."}), "--model", "no/such-model"]) == 0
    assert capsys.readouterr().out.endswith(
        "note: the tokenizer of no/such-model is not on this machine; every 3 characters are taken for a token; "
        "--download fetches the tokenizer\n"
    )


def test_a_good_file_exits_0(file, capsys):
    assert main(["data", file({"text": "One."})]) == 0
    assert capsys.readouterr().out.startswith("Yes: chats.jsonl: 1 row in the format text; all can be trained on.\n")


def test_of_many_bad_rows_the_first_are_shown_and_all_are_in_json(file, capsys):
    path = file(*({"text": n} for n in range(1, 30)))
    assert main(["data", path]) == 1
    assert "  line 10  text must be text, but is 10\n  and 19 more with --json\n" in capsys.readouterr().out
    assert main(["data", path, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert len(document["rejected"]) == document["num_rows"] == 29
    assert (document["lengths"], document["proposal"]) == (None, None)


def test_lengths_are_counted_for_the_usual_limits_and_the_one_asked_for(file, capsys):
    path = file({"text": "x" * 30}, {"text": "x" * 6000})
    assert main(["data", path, "--max-length", "700", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["lengths"] == {
        "counted": False,
        "num_tokens": 2010,
        "p50": 10,
        "p90": 2000,
        "p95": 2000,
        "p99": 2000,
        "max": 2000,
    }
    assert [(limit["max_length"], limit["num_cut"]) for limit in document["limits"]] == [
        (512, 1),
        (700, 1),
        (1024, 1),
        (2048, 0),
    ]
    assert document["proposal"] == {"max_length": 2048, "why": "cuts no row; the longest has 2,000 tokens"}


def test_a_file_that_cannot_be_read_exits_2(file, capsys):
    assert main(["data", file({"question": "One?"})]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: the columns question belong to no known format\n\nhint: columns by format:")


def test_a_plan_refuses_what_a_launch_would_and_says_where_to_look(file, capsys):
    path = file({"text": "One."}, {"text": ""}, {"text": 3})
    assert main(["plan", "7b", "--gpu", "t4", "--data", path]) == 2
    assert capsys.readouterr().err == (
        "error: chats.jsonl, line 2: text is empty\n\n"
        "hint: 2 of 3 rows cannot be trained on; `fitune data chats.jsonl` lists them\n"
    )


@pytest.mark.slow
def test_with_a_model_the_rows_are_shown_as_it_reads_them(file, tmp_path, capsys):
    from trainer.tiny_model import write_tiny_model

    write_tiny_model(tmp_path / "model")
    capsys.readouterr()
    assert main(["data", file({"messages": [USER, ANSWER]}, {"messages": [ANSWER]}), "--model", "model"]) == 0
    out = capsys.readouterr().out
    assert "learned      every answer, up to and with the stop token </s>\n" in out
    shown = out.partition("stands between tokens.\n")[2].replace("|", "")
    assert "tokens, 5 count in the loss\n<s><user>\u21b5\nOne?\u21b5\n<assistant>\u21b5\n[[Two.</s>]]\u21b5\n" in shown
    assert "note: the model has no chat template; the default one is used, and saved with the tokenizer\n" in out
