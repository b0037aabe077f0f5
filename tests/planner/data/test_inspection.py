import json
import sys

import pytest

from planner.data.inspection import guess_note, inspect_data, lengths_of
from profiles.errors import DataError, RunError


@pytest.fixture
def texts(tmp_path):
    """Writes texts into a data file."""

    def write(*values):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
        return path

    return write


def test_without_the_tokenizer_tokens_are_guessed_from_characters_and_it_is_said(texts):
    report = inspect_data(texts("x" * 3, "x" * 4, "x" * 30), "no/such-model")
    assert lengths_of(report).counts == ((1, 1), (2, 1), (10, 1))
    assert guess_note(report) == (
        "the tokenizer of no/such-model is not on this machine; every 3 characters are taken for a token"
    )


def test_it_is_told_how_far_the_file_is_read(texts):
    shares = []
    inspect_data(texts("a", "b", "c", "d"), on_progress=shares.append)
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_bad_data_is_told_as_the_trainer_tells_it(tmp_path):
    with pytest.raises(DataError, match="there is no data file"):
        inspect_data(tmp_path / "missing.jsonl")


def test_a_reader_that_dies_is_no_traceback(tmp_path, monkeypatch):
    dies = tmp_path / "python"
    dies.write_text(
        "#!/bin/sh\necho '{\"share\": 0.5}'\necho 'Traceback\nModuleNotFoundError: No module named x' >&2\nexit 1\n"
    )
    dies.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(dies))
    with pytest.raises(RunError, match="cannot be read: ModuleNotFoundError: No module named x"):
        inspect_data(tmp_path / "rows.parquet")


@pytest.mark.slow
def test_with_the_tokenizer_tokens_are_counted_and_nothing_is_guessed(texts, tmp_path):
    from transformers import AutoTokenizer

    from trainer.tiny_model import write_tiny_model

    write_tiny_model(tmp_path / "model")
    report = inspect_data(texts("One? Two.", "Three."), str(tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    # One more for the end of the sequence.
    counted = [len(tokenizer(text)["input_ids"]) + 1 for text in ("One? Two.", "Three.")]
    assert lengths_of(report).counts == tuple((length, 1) for length in sorted(counted))
    assert guess_note(report) is None
