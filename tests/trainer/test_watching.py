"""What a run shows, keeps and decides while it trains."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from planner.config.run_config import DataKnobs, SampleKnobs
from planner.config.run_file import write_run_file
from planner.records.run_record import Prediction
from trainer.run_folder.checkpoints import read_state

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def evaluated(tiny_config, tiny):
    """A run with rows to evaluate on, and a learning rate too low for any gain."""

    def config(**knobs):
        data = DataKnobs(path=str(tiny / "data.jsonl"), eval_fraction=0.1)
        usual = {"data": data, "max_length": 32, "gradient_checkpointing": False, "eval_steps": 2, "save_steps": 2}
        rate = {"learning_rate": 1e-30, "lr_scheduler_type": "constant"}
        return tiny_config(**{**usual, **rate, "max_steps": 4, **knobs})

    return config


def weights(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


def test_the_best_checkpoint_is_kept_and_is_the_result(evaluated, train):
    record = train(evaluated(load_best_model_at_end=True, save_total_limit=2))
    output_dir = Path(record.config.output_dir)
    history = read_state(output_dir / "checkpoint-4")["log_history"]
    losses = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    best = min(losses, key=losses.get)
    assert best == 2
    assert {folder.name for folder in output_dir.glob("checkpoint-*")} == {f"checkpoint-{best}", "checkpoint-4"}
    assert weights(output_dir / "final") == weights(output_dir / "checkpoint-2") != weights(output_dir / "checkpoint-4")
    assert record.result.eval_loss == losses[best]

    # A launch that finds nothing left to do ends with the same weights.
    again = train(record.config, resume=True)
    assert (again.result.steps, again.result.eval_loss) == (4, losses[best])
    assert weights(output_dir / "final") == weights(output_dir / f"checkpoint-{best}")


def test_a_run_without_gain_stops_early_and_stays_stopped(evaluated, train):
    config = evaluated(early_stopping_patience=1, max_steps=8, save_steps=100)
    record = train(config)
    steps = record.result.steps
    assert record.result.status == "completed"
    assert steps < 8
    history = read_state(Path(config.output_dir) / f"checkpoint-{steps}")["log_history"]
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert len(losses) == 2
    assert losses[1] >= losses[0]
    assert train(config, resume=True).result.steps == steps


@pytest.mark.parametrize(
    ("knobs", "rule"),
    [
        ({"eval_steps": None}, "needs evaluations; set eval_steps"),
        ({"data": DataKnobs(path="d.jsonl")}, "needs rows to evaluate on; set data.eval_fraction"),
        ({"save_steps": 3}, "save_steps 3 is not a multiple of eval_steps 2"),
    ],
)
def test_the_best_checkpoint_needs_evaluations(evaluated, knobs, rule):
    with pytest.raises(ValueError, match=rule):
        evaluated(load_best_model_at_end=True, **knobs)


def test_a_model_that_scores_is_asked_for_no_answers(tiny_config):
    with pytest.raises(ValueError, match="samples asks for answers, but a model with objective reward gives scores"):
        tiny_config(objective="reward", samples=SampleKnobs(prompts=("a",)))


def test_samples_are_kept_and_change_nothing(tiny_config, train, tmp_path, capsys):
    plain = tiny_config(max_steps=4, output_dir=str(tmp_path / "plain"))
    asked = tiny_config(
        max_steps=4,
        output_dir=str(tmp_path / "asked"),
        samples=SampleKnobs(
            prompts=("What is 3 plus 4?", "Write the word apple backwards."), steps=2, max_new_tokens=5
        ),
    )
    finals = []
    for config in (plain, asked):
        train(config)
        finals.append(weights(Path(config.output_dir) / "final"))
    assert finals[0] == finals[1]
    samples = [json.loads(line) for line in (tmp_path / "asked" / "samples.jsonl").read_text().splitlines()]
    assert [(sample["step"], sample["prompt"]) for sample in samples] == [
        (step, prompt) for step in (2, 4) for prompt in asked.samples.prompts
    ]
    assert f"step 2  'What is 3 plus 4?' -> {samples[0]['answer']!r}" in capsys.readouterr().err


def test_the_log_file_has_the_figures_of_the_display(evaluated, train):
    record = train(evaluated(max_steps=2), prediction=Prediction(allocated_bytes=50_000_000))
    lines = [json.loads(line) for line in (Path(record.config.output_dir) / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["eval_loss"] is None) for line in lines] == [(1, True), (2, True), (2, False)]
    last = lines[-1]
    assert last["eval_loss"] == record.result.eval_loss
    assert last["loss"] == record.result.loss
    assert (last["predicted_bytes"], last["peak_bytes"]) == (50_000_000, record.measured.allocated_bytes)
    assert last["tokens_per_second"] > 0
    assert (last["seconds_left"], lines[0]["seconds_left"] > 0) == (0, True)


def losses_in_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = folder.rglob("events.out.tfevents.*")
    tracked = EventAccumulator(str(events)).Reload()
    return [entry.value for tag in ("train/loss", "eval/loss") for entry in tracked.Scalars(tag)]


def losses_in_wandb(folder):
    (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    # A log of protocol buffers, in which each figure stands twice: as what was logged, and in the summary so far.
    found = re.findall(rb"(train|eval)/loss\x82\x01.([\d.]+)", log.read_bytes(), re.DOTALL)
    return [float(value) for kind in (b"train", b"eval") for value in dict.fromkeys(v for k, v in found if k == kind)]


def losses_in_trackio(folder):
    with sqlite3.connect(folder / "trackio" / "fitune.db") as store:
        rows = store.execute("select run_name, metrics from metrics order by id").fetchall()
    assert {name for name, _ in rows} == {"run"}
    logged = [json.loads(metrics) for _, metrics in rows]
    return [figures[name] for name in ("train/loss", "eval/loss") for figures in logged if name in figures]


def losses_in_mlflow(folder):
    import mlflow

    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["0"])
    assert run.info.run_name == "run"
    return [entry.value for name in ("loss", "eval_loss") for entry in client.get_metric_history(run.info.run_id, name)]


TRACKERS = {
    "tensorboard": losses_in_tensorboard,
    "wandb": losses_in_wandb,
    "trackio": losses_in_trackio,
    "mlflow": losses_in_mlflow,
}
"""How to read back what each tracker keeps in a folder."""


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("tracker", TRACKERS)
def test_figures_go_to_a_tracker_by_its_name(evaluated, monkeypatch, tmp_path, tracker):
    pytest.importorskip(tracker)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    write_run_file(evaluated(max_steps=2, report_to=(tracker,)), tmp_path / "run.yaml")
    # In a process of its own, as each run is: trackers read their settings once and send figures until it ends.
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "trainer", "run.yaml"], env=env, check=True, capture_output=True)
    result = json.loads((tmp_path / "run" / "record.jsonl").read_text())["result"]
    first, last, evaluation = TRACKERS[tracker](tmp_path)
    assert first > 0
    assert (last, evaluation) == pytest.approx((result["loss"], result["eval_loss"]))
