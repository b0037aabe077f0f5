import json
from dataclasses import replace

import pytest

from calibration import compare as compare_module
from calibration.compare import by_trace
from calibration.errors_page import RUNS
from calibration.trace.harness import TRAINER, Harness
from calibration.truth.kept_traces import KeptTraces, fingerprint, tracer
from calibration.truth.measured_runs import read_runs
from calibration.truth.measured_step import question
from calibration.truth.prediction import Prediction
from profiles.errors import DataError

ANSWER = Prediction(3, 4, "fits")


@pytest.fixture(scope="module")
def questions():
    return {run.id: question(run) for run in read_runs(RUNS) if run.id in ("FIT-003", "FIT-004", "FIT-067", "FIT-077")}


@pytest.fixture
def kept(tmp_path):
    return KeptTraces(tmp_path / "traced.json")


def test_an_answer_is_found_again_in_the_file(kept, questions, tmp_path):
    kept.keep("FIT-003", questions["FIT-003"], ANSWER)
    kept.keep("FIT-004", questions["FIT-004"], "no such model")
    again = KeptTraces(tmp_path / "traced.json")
    assert again.find("FIT-003", questions["FIT-003"], tracer()) == ANSWER
    assert again.find("FIT-004", questions["FIT-004"]) == "no such model"
    assert set(again.tracers()[tracer()]) == {"torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes"}


def test_an_answer_to_another_question_or_of_another_tracer_is_none(kept, questions):
    model, step, gpu = questions["FIT-003"]
    kept.keep("FIT-003", (model, step, gpu), ANSWER)
    assert kept.find("FIT-003", (model, replace(step, seq_len=step.seq_len + 1), gpu)) is None
    assert kept.find("FIT-003", (model, step, gpu), "another") is None


def test_the_harness_is_part_of_the_question(questions):
    bare = Harness(loop="bare", source="elsewhere")
    asked = questions["FIT-003"]
    assert fingerprint(asked, bare) != fingerprint(asked, TRAINER)
    assert fingerprint(asked, bare) == fingerprint(asked, bare.model_copy(update={"source": "somewhere"}))


def test_what_is_kept_is_not_traced_again_and_equal_questions_once(kept, questions, monkeypatch):
    asked = []

    def traced_each(firsts):
        asked.append(list(firsts.values()))
        yield from ((key, ANSWER) for key in firsts)

    monkeypatch.setattr("calibration.truth.traced_prediction.traced_each", traced_each)
    kept.keep("FIT-003", questions["FIT-003"], ANSWER)
    assert by_trace(questions, kept) == dict.fromkeys(questions, ANSWER)
    assert [len(firsts) for firsts in asked] == [2]  # FIT-067 and FIT-077 are one question
    assert by_trace(questions, kept) == dict.fromkeys(questions, ANSWER)
    assert len(asked) == 1


def test_what_was_traced_before_an_interruption_is_kept(kept, questions, monkeypatch):
    def interrupted(firsts):
        yield next(iter(firsts)), ANSWER
        raise KeyboardInterrupt

    monkeypatch.setattr("calibration.truth.traced_prediction.traced_each", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare_module.by_trace(questions, kept)
    assert sum(kept.find(id_, asked) == ANSWER for id_, asked in questions.items()) == 1


def test_runs_that_are_gone_are_forgotten(kept, questions, tmp_path):
    kept.keep("FIT-003", questions["FIT-003"], ANSWER)
    kept.forget_all_but(set())
    assert json.loads((tmp_path / "traced.json").read_text("utf-8")) == {"tracers": {}, "answers": {}}


def test_another_file_is_refused_with_its_name(tmp_path):
    path = tmp_path / "traced.json"
    path.write_text("[]", "utf-8")
    with pytest.raises(DataError, match=r"traced\.json cannot be read as kept traces"):
        KeptTraces(path)
