import json
import subprocess

import pytest

from planner.data_lengths import data_lengths
from profiles.errors import DataError, RunError


def test_without_the_tokenizer_characters_are_counted_and_it_is_said(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps({"text": "x" * length}) for length in (3, 4, 30)))
    lengths, note = data_lengths(data, "no/such-model")
    assert (lengths.num_rows, lengths.sample) == (3, (1, 2, 10))
    assert note == "the tokenizer of no/such-model is not on this machine; a token is taken for 3 characters"


def test_bad_data_is_told_as_the_trainer_tells_it(tmp_path):
    with pytest.raises(DataError, match="there is no data file"):
        data_lengths(tmp_path / "missing.jsonl", "no/such-model")


def test_a_reader_that_dies_is_no_traceback(tmp_path, monkeypatch):
    died = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nModuleNotFoundError: No module named 'x'")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: died)
    with pytest.raises(RunError, match="cannot be measured: ModuleNotFoundError: No module named 'x'"):
        data_lengths(tmp_path / "rows.parquet", "no/such-model")
