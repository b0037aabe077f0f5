import json
import subprocess
import sys

import pytest

from profiles.errors import DataError, FituneError
from trainer.data.inspect_data import inspect, main

USER, ANSWER = {"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}
SYSTEM, TOOL = {"role": "system", "content": "Count."}, {"role": "tool", "content": "2"}


def lines(*rows):
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def chat(*turns):
    return {"messages": list(turns)}


GOOD = chat(USER, ANSWER)

REJECTED = {
    "broken JSON": (b'{"messages": [', "not JSON: Expecting value at character 15"),
    "not UTF-8": (b'{"messages": "\xff"}', "not UTF-8 text: invalid start byte at byte 15 of the line"),
    "no object": (b"[1, 2]", "a list, but a row must be an object with named columns"),
    "other columns": ({"question": "One?"}, "there are no messages; the row has question"),
    "no turns": ({"messages": []}, "messages must be a list of at least one turn, but is []"),
    "unknown role": (
        chat({"role": "boss", "content": "Go."}, ANSWER),
        "messages[0].role is 'boss', but must be one of",
    ),
    "no text": (chat({"role": "user", "content": None}, ANSWER), "messages[0].content must be text, but is None"),
    "half a character": (
        b'{"messages": [{"role": "user", "content": "\\ud83d"}]}',
        r"messages[0].content must be text, but is '\ud83d'",
    ),
    "no answer": (chat(USER), "no turn of the conversation is the assistant's, so there is nothing to learn from"),
}


def test_every_row_that_cannot_be_trained_on_is_told_with_its_line(data_file):
    report = inspect(data_file(lines(GOOD, *(row for row, _ in REJECTED.values()), GOOD)))
    assert [finding.place for finding in report.rejected] == [f"line {n + 2}" for n in range(len(REJECTED))]
    for finding, (_, sentence) in zip(report.rejected, REJECTED.values(), strict=True):
        assert finding.what.startswith(sentence)
    assert report.num_rows == len(REJECTED) + 2


ODD = {
    "duplicate": (chat(USER, ANSWER), "the same as line 1"),
    "empty answer": (chat(USER, {"role": "assistant", "content": " \n"}), "turn 2, the assistant's, is empty"),
    "roles do not alternate": (chat(USER, USER, ANSWER), "turn 2 is the user's, after one of the user"),
    "no answer at the end": (chat(USER, ANSWER, USER), "the last turn is the user's; nothing of it is learned"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_rarely_meant_is_told_with_its_line(kind, data_file):
    row, sentence = ODD[kind]
    report = inspect(data_file(lines(GOOD, b"", row)))
    assert {name: [(one.place, one.what) for one in found] for name, found in report.odd.items()} == {
        kind: [("line 3", sentence)]
    }
    assert report.rejected == ()


@pytest.mark.parametrize(
    "turns",
    [(USER, ANSWER), (SYSTEM, USER, ANSWER, USER, ANSWER), (USER, ANSWER, TOOL, TOOL, ANSWER)],
    ids=["pair", "system", "tools"],
)
def test_turns_in_their_usual_order_are_not_odd(turns, data_file):
    assert inspect(data_file(lines(chat(*turns)))).odd == {}


@pytest.mark.parametrize(
    ("turns", "sentence"),
    [
        ((ANSWER, USER, ANSWER), "turn 1 is the assistant's, at the beginning"),
        ((USER, ANSWER, ANSWER), "turn 3 is the assistant's, after one of the assistant"),
        ((USER, SYSTEM, ANSWER), "turn 2 is the system's, after one of the user"),
    ],
)
def test_turns_out_of_order_are_told(turns, sentence, data_file):
    (finding,) = inspect(data_file(lines(chat(*turns)))).odd["roles do not alternate"]
    assert finding.what == sentence


FORMATS = {
    "text": {"text": "One."},
    "prompt-completion": {"prompt": "One?", "completion": "Two."},
    "messages": GOOD,
    "alpaca": {"instruction": "One?", "output": "Two."},
    "sharegpt": {"conversations": [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "Two."}]},
    "preference": {"prompt": "One?", "chosen": "Two.", "rejected": "Three."},
    "kto": {"prompt": "One?", "completion": "Two.", "label": True},
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_format_is_found_and_the_longest_text_of_a_row_counted(name, data_file):
    report = inspect(data_file(lines(FORMATS[name])))
    characters = {"text": 4, "prompt-completion": 8, "kto": 8, "preference": 10}.get(name, 10)
    assert (report.format, report.unit, report.length_counts) == (name, "characters", ((characters, 1),))


def test_names_of_roles_that_are_read_as_others_are_told(data_file):
    assert inspect(data_file(lines(FORMATS["sharegpt"]))).remarks == ("roles are read as gpt: assistant, human: user",)


@pytest.mark.parametrize(
    ("labels", "remarks"),
    [
        ((True, True), ("all 2 answers are labelled good; kto learns little without bad ones",)),
        ((False, False), ("all 2 answers are labelled bad; kto learns little without good ones",)),
        ((True, False), ()),
    ],
)
def test_labels_that_are_all_the_same_are_told(labels, remarks, data_file):
    rows = [{"prompt": f"{number}?", "completion": "Yes.", "label": label} for number, label in enumerate(labels)]
    assert inspect(data_file(lines(*rows))).remarks == remarks


def test_rows_before_the_first_of_a_known_format_are_rejected(data_file):
    report = inspect(data_file(lines({"a": 1}, {"text": "b"}, {"text": "c"})))
    (finding,) = report.rejected
    assert (report.format, finding.place) == ("text", "line 1")
    assert finding.what == "the columns a belong to no known format"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (lines({"a": 1}, {"a": 2}), "the columns a belong to no known format"),
        (b"{\n", "line 1: not JSON"),
        (b"\n", "has no rows"),
    ],
)
def test_a_file_without_one_readable_row_is_refused(text, sentence, data_file):
    with pytest.raises(DataError, match=sentence):
        inspect(data_file(text))


def test_a_declared_format_is_kept(data_file):
    report = inspect(data_file(lines({"text": "a", "prompt": "b", "completion": "c"})), declared="text")
    assert report.format == "text"


def test_a_size_is_no_model_with_a_tokenizer(data_file):
    with pytest.raises(FituneError, match="is a size and not a model with weights"):
        inspect(data_file(lines(GOOD)), "7b")


def test_without_a_tokenizer_nothing_heavy_is_loaded(data_file):
    script = (
        "import sys; from trainer.data.inspect_data import main; code = main(sys.argv[1:]); "
        "loaded = sys.modules.keys() & {'torch', 'transformers', 'trl', 'datasets'}; "
        "sys.exit(str(loaded) if loaded else code)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(data_file(lines(GOOD))), "--model", "no/such-model"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_the_process_says_how_far_it_is_and_then_what_it_found(data_file, capsys):
    assert main([str(data_file(lines(*({"text": f"row {n}"} for n in range(5)))))]) == 0
    *shares, report = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert [line["share"] for line in shares] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert report["num_rows"] == 5


def test_an_error_is_printed_as_json(tmp_path, capsys):
    assert main([str(tmp_path / "none.jsonl")]) == 2
    assert "there is no data file" in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.slow
def test_with_a_tokenizer_tokens_are_counted_and_the_first_rows_shown(data_file, tiny):
    rows = (
        chat(USER, ANSWER),
        chat(USER, {"role": "assistant", "content": "Two, three."}),
        chat(USER, ANSWER, USER, ANSWER),
    )
    report = inspect(data_file(lines(*rows)), str(tiny / "model"), preview=2)
    assert (report.unit, report.learned, report.stop_tokens) == ("tokens", "every answer", ("</s>",))
    assert sum(count for _, count in report.length_counts) == 3
    assert [row.place for row in report.preview] == ["line 1", "line 2"]
    ((pieces,), _) = (row.sequences for row in report.preview)
    assert "".join(piece.text for piece in pieces) == "<s><|user|>\nOne?\n<|assistant|>\nTwo.</s>\n"
    assert "".join(piece.text for piece in pieces if piece.learned) == "Two.</s>"
    assert (len(pieces), 1) in report.length_counts
    assert report.remarks == ("the model has no chat template; the default one is used, and saved with the tokenizer",)


@pytest.mark.slow
def test_rows_of_which_nothing_is_learned_within_max_length_are_told(data_file, tiny):
    text = lines(chat(USER, ANSWER), chat({"role": "user", "content": "long " * 50}, ANSWER))
    report = inspect(data_file(text), str(tiny / "model"), max_length=40, preview=2)
    (finding,) = report.odd["nothing is learned"]
    assert finding.place == "line 2"
    assert finding.what.endswith("tokens, and max_length is 40")
    assert len(report.preview[1].sequences[0]) == 40
