import pytest

from planner.config.run_config import LoraKnobs, RunConfig
from planner.records.run_record import Environment, Measured, Prediction, Result, RunRecord
from planner.records.run_store import recall
from profiles.errors import InputError
from trainer.run_folder.record import append_record, card_name, read_prediction, read_records, remember_run

RECORD = RunRecord(
    time="2026-11-21T08:00:00+00:00",
    config=RunConfig(model="m", lora=LoraKnobs(target_modules=("q_proj",))),
    predicted=Prediction(allocated_bytes=10, interval_bytes=(9, 12)),
    measured=Measured(allocated_bytes=11, tokens_per_second=3.5, phases={"load": 5}),
    environment=Environment(gpu=None, driver=None, cuda=None, python="3.11", platform="Linux", packages={"torch": "2"}),
    result=Result(status="completed", steps=3, max_steps=3, loss=1.5, seconds=2.0),
)


def test_a_record_is_one_line_and_reads_back(tmp_path):
    append_record(RECORD, tmp_path)
    append_record(RECORD, tmp_path)
    assert (tmp_path / "record.jsonl").read_text().count("\n") == 2
    assert read_records(tmp_path) == [RECORD, RECORD]


@pytest.mark.parametrize(
    ("device", "planned", "expected"),
    [
        ("Tesla T4", "T4", "T4"),
        ("Tesla T4", "L4", "T4"),
        ("Tesla V100-SXM2-32GB", None, "V100-SXM2-32GB"),
        ("A card of next year", "T4", "A card of next year"),
        (None, "T4", "CPU"),
    ],
)
def test_a_card_is_kept_by_its_name_in_the_catalogue(device, planned, expected):
    assert card_name(device, planned) == expected


def test_a_run_of_a_model_that_nobody_knows_is_remembered_without_its_shape(tmp_path, monkeypatch):
    monkeypatch.setenv("FITUNE_STORE", str(tmp_path / "store.db"))
    remember_run(RECORD, tmp_path / "run")
    (run,) = recall(tmp_path / "store.db")
    assert (run.record, run.shape, run.folder) == (RECORD, None, str(tmp_path / "run"))


def test_a_folder_without_records_has_none(tmp_path):
    assert read_records(tmp_path) == []


def test_a_damaged_record_is_told(tmp_path):
    (tmp_path / "record.jsonl").write_text('{"time": 3')
    with pytest.raises(InputError, match="is no record of this version"):
        read_records(tmp_path)


def test_a_prediction_is_optional_but_not_free_of_form(tmp_path):
    path = tmp_path / "prediction.json"
    assert read_prediction(path) is None
    path.write_text('{"allocated_bytes": 10, "tokens_per_second": null}')
    assert read_prediction(path) == Prediction(allocated_bytes=10)
    path.write_text('{"allocated": 10}')
    with pytest.raises(InputError, match="is no prediction"):
        read_prediction(path)
