import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from calibration.compare import application, compare
from calibration.truth.error_table import summarize
from calibration.truth.measured_runs import read_runs
from profiles.errors import DataError

TRUTH = Path(__file__).parents[2] / "calibration" / "truth" / "runs.csv"


@pytest.fixture(scope="module")
def one_gpu():
    return [run for run in read_runs(TRUTH) if run.num_gpus == 1 and run.method in ("full", "lora", "qlora")]


def test_predictions_meet_the_measured_runs(one_gpu):
    compared, skipped = compare(one_gpu)
    summary = summarize(compared, skipped)
    assert summary.median_abs_error < 0.05
    assert summary.p95_abs_error < 0.16
    assert summary.false_fits == 0
    assert summary.false_refusals == 0


def test_at_most_a_tenth_of_the_runs_is_skipped(one_gpu):
    _, skipped = compare(one_gpu)
    assert len(skipped) <= len(one_gpu) / 10
    assert all(skip.why for skip in skipped)


def test_where_every_knob_is_stated_and_attention_is_fused_allocated_memory_is_within_two_percent(one_gpu):
    stated = [
        run for run in one_gpu if run.harness == "FIT" and run.metric == "max_allocated" and run.attention != "eager"
    ]
    errors = [abs(comparison.error) for comparison in compare(stated)[0]]
    assert len(errors) >= 20
    assert max(errors) < 0.02


def test_predictions_meet_the_runs_on_several_gpus():
    several = [run for run in read_runs(TRUTH) if run.num_gpus > 1]
    compared, skipped = compare(several)
    summary = summarize(compared, skipped)
    assert len(compared) == len(several) == 112
    assert summary.median_abs_error < 0.02
    assert summary.p95_abs_error < 0.12
    assert summary.false_fits == 0
    assert summary.false_refusals == 0


def test_json_holds_rows_and_summary():
    result = CliRunner().invoke(application, ["--runs", str(TRUTH), "--with", "closed-form", "--json"])
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert set(document["summary"]) == {
        "rows", "skipped", "median_abs_error", "p95_abs_error", "mean_error", "false_fits", "false_refusals",
    }  # fmt: skip
    assert document["summary"]["rows"] == len(document["rows"])
    row = next(row for row in document["rows"] if row["error"] is not None)
    assert row["error"] == pytest.approx(row["predicted_bytes"] / row["measured_bytes"] - 1)


def test_a_bad_cell_is_named_with_its_line(tmp_path):
    text = TRUTH.read_text(encoding="utf-8").splitlines()
    bad = tmp_path / "runs.csv"
    bad.write_text("\n".join([text[0], text[1].replace(",2048,", ",many,")]), encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2: seq_len is 'many'"):
        read_runs(bad)


def test_a_missing_file_is_one_sentence():
    result = CliRunner().invoke(application, ["--runs", "nowhere.csv"])
    assert result.exit_code == 2
    assert result.stderr == "error: nowhere.csv cannot be read: No such file or directory\n"
