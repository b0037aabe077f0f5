import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from calibration.measure import main
from calibration.measuring.command import parse_cap
from calibration.measuring.grid import capped_grid, cpu_grid, grid, planned, values_shown
from calibration.measuring.measurement import (
    Attempt,
    Expected,
    Measurement,
    append_measurement,
    read_measurements,
    record_file,
)
from calibration.measuring.measuring_process import MeasuringProcess
from calibration.versus import duels, pairs
from planner.records.experience import Experience
from planner.records.run_record import Prediction
from planner.records.run_store import recall
from planner.units import GIB, MIB
from profiles.detect import detect_gpu
from profiles.errors import EnvironmentFault, InputError, RunError
from profiles.gpu_catalog import find_gpu

H200 = find_gpu("h200")


@pytest.fixture(scope="module")
def drawn():
    """Points of an H200, as many as a test needs."""
    return grid(H200, draws=120)


@pytest.fixture(scope="module")
def edges():
    return capped_grid(H200, [15 * GIB, 24 * GIB], draws=8)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The file of a run on this machine's CPU, in which two points cannot be measured."""
    path = tmp_path_factory.mktemp("records") / "deep" / "cpu.jsonl"
    usual = cpu_grid()
    point = usual[1].point
    unknown = point.model_copy(
        update={"id": "unknown", "config": point.config.model_copy(update={"optim": "adamw_of_nobody"})}
    )
    huge = point.model_copy(update={"id": "huge", "model": point.model.model_copy(update={"vocab_size": 2**42})})
    broken = [replace(usual[1], point=one) for one in (unknown, huge)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calibration.measuring.command.detect_gpu", _no_gpu)
        patch.setenv("FITUNE_STORE", str(path.with_name("runs.db")))
        patch.setattr("calibration.measure.points_for", lambda *_: [*broken, *usual, *itertools.chain(*two_pairs())])
        assert main(["--output", str(path), "--minutes", "5"]) == 0
    return path


def two_pairs():
    """Our trainer and plain TRL, our trainer and plain Transformers: one run each, of two steps."""
    return [tuple(map(shorter, pair)) for pair in pairs(None)[:2]]


def shorter(one):
    config = one.point.config.model_copy(update={"max_steps": 2})
    return planned(one.point.model, config, None, trainer=one.point.trainer)


def _no_gpu():
    raise EnvironmentFault("no GPU")


def test_points_of_the_grid_fit_the_card(drawn):
    assert drawn
    assert {one.prediction.verdict for one in drawn} == {"fits"}


def test_the_first_points_show_more_than_the_last(drawn):
    def shown(points):
        return {pair for one in points for pair in itertools.combinations(values_shown(one.point), 2)}

    assert len(shown(drawn[:15])) > len(shown(drawn[-15:]))


def test_a_grid_is_the_same_each_time(drawn):
    again = grid(H200, draws=120)
    assert [one.point.id for one in again] == [one.point.id for one in drawn]


def test_points_of_a_cap_lie_on_both_sides_of_it(edges):
    verdicts = {(one.point.cap_bytes, one.prediction.verdict) for one in edges}
    assert verdicts >= {(cap * GIB, verdict) for cap in (15, 24) for verdict in ("fits", "no")}
    low = [one.prediction.estimate.interval_bytes[1] for one in edges if one.prediction.verdict == "fits"]
    assert max(low) <= 24 * GIB


def test_a_cap_leaves_room_for_the_context(edges):
    point = edges[0].point
    assert point.allocator_limit_bytes == point.cap_bytes - H200.context_bytes


@pytest.mark.parametrize("text", ["15", "0.5GB", "GB", "-3GB"])
def test_a_cap_that_is_no_size_is_refused(text):
    with pytest.raises(InputError, match="must be a size"):
        parse_cap(text)


def test_a_cap_above_the_card_is_refused(capsys):
    assert main(["--list", "--gpu", "t4", "--cap", "24GB"]) == 2
    assert "--cap is 24.0 GiB, but the T4 has 14.6 GiB" in capsys.readouterr().err


@pytest.mark.slow
def test_points_are_trained_and_stand_beside_their_prediction(measured):
    found = [one for one in read_measurements(measured)[2:] if one.point.step.eval_batch]
    assert [one.attempt.outcome for one in found] == ["ran"] * len(cpu_grid())
    for one in found:
        assert one.error == pytest.approx(0, abs=0.03)
        assert one.attempt.measured.phases.keys() == {"load", "forward", "backward", "step", "evaluation"}


@pytest.mark.slow
def test_the_same_run_takes_the_same_memory_in_each_trainer(measured):
    found = duels(two_pairs(), read_measurements(measured))
    assert [one.against for one in found] == ["trl", "transformers"]
    for one in found:
        assert one.memory_ratio == pytest.approx(1, abs=0.01)
        assert one.predicted_ratio == pytest.approx(1, abs=0.03)
        assert one.their_predicted_ratio == pytest.approx(1, abs=0.03)
        assert one.speed_ratio > 0


@pytest.mark.slow
def test_what_was_measured_teaches_later_plans(measured):
    runs = recall(measured.with_name("runs.db"))
    ran = [one for one in read_measurements(measured) if one.attempt.outcome == "ran"]
    assert len(runs) == sum(one.point.trainer == "fitune" for one in ran)
    assert {(run.origin, run.card) for run in runs} == {("calibration", "CPU")}
    lesson = Experience(runs).lesson(None, runs[0].record.config)
    assert lesson.num_runs >= 1


@pytest.mark.slow
def test_what_cannot_be_measured_is_recorded(measured):
    unknown, huge = (one.attempt for one in read_measurements(measured)[:2])
    assert unknown.outcome == "failed"
    assert "adamw_of_nobody" in unknown.message
    assert (huge.outcome, huge.ended_in) == ("out of memory", "load")


@pytest.mark.slow
def test_points_that_are_in_the_file_are_not_measured_again(measured, monkeypatch, capsys):
    monkeypatch.setattr("calibration.measuring.command.detect_gpu", _no_gpu)
    before = measured.read_text()
    # As a machine leaves it that stops in the middle of a line.
    measured.write_text(before + before[:100])
    assert main(["--output", str(measured), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measurements"] == []
    assert measured.read_text() == before


def test_a_process_that_does_not_answer_is_a_failure():
    with MeasuringProcess(limit_seconds=0.05) as process:
        attempt = process.attempt(cpu_grid()[0].point)
    assert attempt.outcome == "failed"
    assert "was ended by signal 9" in attempt.message


def test_ctrl_c_as_a_point_begins_leaves_no_thread_that_keeps_the_process_alive(monkeypatch):
    start = threading.Thread.start

    def interrupted(thread):
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr("calibration.measuring.measuring_process.Timer.start", interrupted)
    with pytest.raises(KeyboardInterrupt), MeasuringProcess(limit_seconds=60) as process:
        process.attempt(cpu_grid()[0].point)
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer) and not thread.daemon]


def test_ctrl_c_ends_it_without_a_trace(tmp_path):
    output = tmp_path / "records" / "cpu.jsonl"
    argv = [sys.executable, "-m", "planner.cli", "calibrate", "--output", str(output)]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not output.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err == f"stopped; {output} has what was measured, and the same command goes on from there\n"
    assert output.read_text() == ""


def test_two_do_not_measure_into_one_file(tmp_path, capsys):
    path = tmp_path / "cpu.jsonl"
    with record_file(path):
        assert main(["--output", str(path)]) == 2
    assert f"another process measures into {path}" in capsys.readouterr().err


@pytest.mark.parametrize("output", [".", "/proc/nowhere/cpu.jsonl"], ids=["folder", "nowhere"])
def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(output, capsys):
    assert main(["--output", output]) == 2
    assert f"{output} cannot be written" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told():
    point = cpu_grid()[0]
    one = Measurement(
        time="2026-11-28T00:00:00+00:00",
        point=point.point,
        expected=Expected(closed_form=Prediction.model_validate(point.prediction.figures), verdict=None),
        attempt=Attempt(outcome="ran"),
    )
    with (
        Path("/dev/full").open("ab", buffering=0) as file,
        pytest.raises(RunError, match="/dev/full cannot be written: No space"),
    ):
        append_measurement(one, file)


@pytest.mark.slow
def test_a_process_that_measures_ends_with_the_one_that_asks():
    asks = "from calibration.measuring.grid import cpu_grid\n"
    asks += "from calibration.measuring.measuring_process import MeasuringProcess\n"
    asks += "one = cpu_grid()[0].point\n"
    asks += "long = one.model_copy(update={'config': one.config.model_copy(update={'max_steps': 10**6})})\n"
    asks += "with MeasuringProcess(60) as process: print(process._start(long).pid, flush=True); process.attempt(long)"
    parent = subprocess.Popen([sys.executable, "-c", asks], stdout=subprocess.PIPE, text=True)
    measurer = Path("/proc") / parent.stdout.readline().strip() / "cmdline"
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while measurer.exists() and b"measure_point" in measurer.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvidia-smi"), reason="needs an NVIDIA GPU")
def test_a_cap_stops_a_card():
    gpu = detect_gpu().profile
    one = next(one for one in grid(gpu, draws=200) if one.point.model.hf_id.endswith("SmolLM2-135M"))
    # Less than the weights of the model and its step.
    stopped = one.point.model_copy(update={"allocator_limit_bytes": 64 * MIB})
    with MeasuringProcess(limit_seconds=120) as process:
        attempts = [process.attempt(point) for point in (stopped, one.point)]
    assert [attempt.outcome for attempt in attempts] == ["out of memory", "ran"]
    assert attempts[1].measured.reserved_bytes > attempts[1].measured.allocated_bytes
    assert attempts[1].left_bytes == 0
