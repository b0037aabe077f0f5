from pathlib import Path

import pytest

from planner.config.run_config import DataKnobs, LoraKnobs, RunConfig
from planner.config.run_file import read_run_file
from planner.records.run_record import Prediction
from trainer.run_folder.record import PREDICTION_FILE, read_prediction, read_recoveries
from trainer.run_folder.seal import seal
from trainer.supervisor.recover import survive
from trainer.supervisor.training_process import Ending

RUN_FILE = Path("run.yaml")
DONE = Ending(0)


def memory_ends(step, moment="training"):
    return Ending(1, moment, step)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "run").mkdir()
    return RunConfig(
        model="phi-2",
        lora=LoraKnobs(),
        data=DataKnobs(path="d.jsonl"),
        per_device_train_batch_size=4,
        output_dir=str(tmp_path / "run"),
    )


@pytest.fixture
def outcome(config):
    """Runs the supervisor over processes that end as given; its exit code, and what it started."""

    def run(*endings, max_restarts=10, resume=False):
        left, started = list(endings), []

        def train(config, run_file, resume):
            started.append((config.per_device_train_batch_size, run_file, resume))
            return left.pop(0)

        code = survive(config, RUN_FILE, resume=resume, max_restarts=max_restarts, train=train)
        return code, started

    return run


def checkpoint(config, step):
    folder = Path(config.output_dir) / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "trainer_state.json").write_text("{}")
    seal(folder)


@pytest.mark.parametrize("code", [0, 1, 2, 130, 143])
def test_a_process_that_memory_did_not_end_is_the_last_one(outcome, code):
    assert outcome(Ending(code)) == (code, [(4, RUN_FILE, False)])


def test_without_a_checkpoint_the_run_starts_again_with_less(config, outcome, capsys):
    code, started = outcome(memory_ends(3), DONE)
    again = Path(config.output_dir) / "run.yaml"
    assert (code, started) == (0, [(4, RUN_FILE, False), (2, again, False)])
    assert read_run_file(again).gradient_accumulation_steps == 2
    (recovery,) = read_recoveries(Path(config.output_dir))
    assert (recovery.moment, recovery.step, recovery.resumed_from) == ("training", 3, 0)
    assert recovery.changes["per_device_train_batch_size"] == (4, 2)
    assert capsys.readouterr().err == (
        "restart 1, from the start, with per_device_train_batch_size 4 -> 2, gradient_accumulation_steps 1 -> 2; "
        f"the effective batch stays 4, and the learning rate 0.0002 ({again})\n"
    )
    assert again.read_text().startswith(
        "# The run in this folder, as it goes on after restart 1, with per_device_train_batch_size 4 -> 2, "
    )


def test_with_a_checkpoint_the_run_goes_on_from_it(config, outcome):
    checkpoint(config, 5)
    code, started = outcome(memory_ends(7), memory_ends(8), DONE)
    again = Path(config.output_dir) / "run.yaml"
    assert (code, started) == (0, [(4, RUN_FILE, False), (2, again, True), (1, again, True)])
    assert [(one.step, one.resumed_from) for one in read_recoveries(again.parent)] == [(7, 5), (8, 5)]


def test_at_the_bottom_the_user_is_told_what_else_would_help(config, outcome, capsys):
    checkpoint(config, 5)
    code, started = outcome(*[memory_ends(6)] * 3)
    assert (code, len(started)) == (1, 3)
    folder = config.output_dir
    assert capsys.readouterr().err.endswith(
        f"\nhint: set method to qlora with quantization nf4; {folder}/checkpoint-5 is whole; "
        f"continue with `fitune launch {folder}/run.yaml --resume`\n"
    )


def test_restarts_are_bounded(outcome, capsys):
    code, started = outcome(*[memory_ends(6)] * 2, max_restarts=1)
    assert (code, len(started)) == (1, 2)
    assert "hint: set per_device_train_batch_size to 1" in capsys.readouterr().err


def test_nothing_is_tried_again_where_the_model_itself_is_too_large(outcome, capsys):
    assert outcome(memory_ends(0, "loading")) == (1, [(4, RUN_FILE, False)])
    assert "hint: set method to qlora" in capsys.readouterr().err


def test_the_prediction_follows_the_configuration(config, outcome):
    path = Path(config.output_dir) / PREDICTION_FILE
    path.write_text(Prediction(allocated_bytes=1 << 40).model_dump_json())
    outcome(memory_ends(3), DONE)
    assert 10**9 < read_prediction(path).allocated_bytes < 10**11


def test_no_prediction_is_made_up_where_there_was_none(config, outcome):
    outcome(memory_ends(3), DONE)
    assert not (Path(config.output_dir) / PREDICTION_FILE).exists()


def test_a_lost_process_is_made_up_for_once_from_each_checkpoint(config, outcome, capsys):
    lost = Ending(None, lost="process 1 was killed", step=6)
    checkpoint(config, 5)
    code, started = outcome(lost, lost)
    again = Path(config.output_dir) / "run.yaml"
    assert (code, started) == (1, [(4, RUN_FILE, False), (4, again, True)])
    (recovery,) = read_recoveries(Path(config.output_dir))
    assert (recovery.lost, recovery.step, recovery.resumed_from, recovery.changes) == ("process 1 was killed", 6, 5, {})
    first, last = capsys.readouterr().err.split("\n", 1)
    assert first.startswith("process 1 was killed, and the others of the run were ended; restart 1, from ")
    assert last.startswith("error: process 1 was killed, and the others of the run were ended, again without a step")
    assert last.endswith("--resume`\n")


def test_restarts_after_a_loss_are_bounded(outcome):
    assert outcome(Ending(None, lost="process 1 was killed"), max_restarts=0) == (1, [(4, RUN_FILE, False)])


def test_a_machine_that_does_not_lead_goes_on_too_and_writes_nothing(config, capsys):
    left, started = [Ending(None, lost="gone"), DONE], []

    def train(config, run_file, resume):
        started.append(run_file)
        return left.pop(0)

    assert survive(config, RUN_FILE, resume=False, max_restarts=3, train=train, leads=False) == 0
    assert started == [RUN_FILE, Path(config.output_dir) / "run.yaml"]
    assert list(Path(config.output_dir).iterdir()) == []
    assert capsys.readouterr().err == ""
