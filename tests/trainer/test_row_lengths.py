import json

import pytest

from profiles.errors import DataError
from trainer.row_lengths import main, row_lengths


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_rows_of_every_kind_are_measured_whole(tmp_path):
    chat = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "de"}]
    kinds = {
        "text": ({"text": "abc"}, 3),
        "prompt": ({"prompt": "ab", "completion": "cde"}, 5),
        "chat": ({"messages": chat}, 6),
    }
    for name, (row, length) in kinds.items():
        assert row_lengths(write(tmp_path / f"{name}.jsonl", row), "none/none")["lengths"] == [length]


def test_with_a_tokenizer_tokens_are_counted_and_the_end(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    data = write(tmp_path / "rows.jsonl", {"text": "a b a"}, {"text": "b"})
    assert row_lengths(data, str(tmp_path)) == {"num_rows": 2, "unit": "tokens", "lengths": [4, 2]}


def test_of_a_long_file_an_even_part_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.row_lengths.MOST_ROWS", 4)
    data = write(tmp_path / "rows.jsonl", *({"text": "x" * length} for length in range(1, 11)))
    measured = row_lengths(data, "none/none")
    assert (measured["num_rows"], measured["lengths"]) == (10, [1, 4, 7, 10])


def test_a_bad_row_is_named(tmp_path):
    data = write(tmp_path / "rows.jsonl", {"text": "a"}, {"text": 3})
    with pytest.raises(DataError, match=r"line 2: text must be text, but is 3"):
        row_lengths(data, "none/none")


def test_an_error_is_printed_as_json(tmp_path, capsys):
    assert main([str(tmp_path / "none.jsonl"), "none/none"]) == 2
    assert "there is no data file" in json.loads(capsys.readouterr().out)["error"]["message"]
