"""Each fault is injected into a real run; what comes out must be what would have come out without it, bit for bit."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from planner.config.run_config import DataKnobs, LoraKnobs, RunConfig
from planner.config.run_file import read_run_file
from profiles.errors import ConfigError
from tests.trainer.injected import STEP, Attempt
from trainer.launch import check
from trainer.run_folder.checkpoints import CONFIG_FILE, last_checkpoint
from trainer.run_folder.record import read_records
from trainer.supervisor.ladder import next_rung

pytestmark = pytest.mark.slow

LAST = 6
TABLE = Path(__file__).parents[2] / "trainer" / "FAULTS.md"


@dataclass(frozen=True)
class Case:
    """A fault, what the launch returns and says, and the schedule that the end result must equal.

    `same_as`: "whole" for the run as it was planned; "smaller" for micro-batches of half the size from the start;
    "later smaller" for such from the checkpoint before the fault. `harm` is done to the newest checkpoint before the
    run is resumed. `lost` is the number of steps that were trained twice.
    """

    fault: str
    exit_code: int
    says: str
    same_as: str = "whole"
    lost: int = 0
    harm: Callable[[Path], None] | None = None
    name: str | None = None

    def __str__(self) -> str:
        return self.name or self.fault


def truncate(checkpoint: Path) -> None:
    os.truncate(checkpoint / "adapter_model.safetensors", 1000)


def lose_states(checkpoint: Path) -> None:
    (checkpoint / "optimizer.pt").unlink()


RESTARTED = "restart 1, from "
CASES = (
    Case("memory ends on the longest batch, tried before training", 0, RESTARTED, same_as="smaller"),
    Case("memory ends in the first step", 0, RESTARTED, same_as="smaller"),
    Case("memory ends in a step", 0, RESTARTED, same_as="later smaller", lost=1),
    Case("memory ends in the evaluation", 0, RESTARTED, lost=1),
    Case("memory ends while a checkpoint is written", 0, RESTARTED, same_as="later smaller", lost=2),
    Case("SIGTERM in a step", 143, "SIGTERM: finishing this step, then writing a checkpoint"),
    Case("Ctrl-C in a step", 130, "SIGINT: finishing this step, then writing a checkpoint"),
    Case("kill -9 in a step", 1, "", lost=1),
    Case("kill -9 while a checkpoint is written", 1, "", lost=2),
    Case("kill -9 before a checkpoint is sealed", 1, "", lost=2),
    Case("kill -9 while the result is written", 1, ""),
    Case(
        "the disk is full while a checkpoint is written",
        1,
        f"error: a file could not be written while saving after step {STEP} of {LAST}, most often because a disk",
        lost=2,
    ),
    Case("SIGTERM in a step", 143, "SIGTERM", lost=2, harm=truncate, name="the newest checkpoint is cut short"),
    Case("SIGTERM in a step", 143, "SIGTERM", lost=2, harm=lose_states, name="the newest checkpoint lost a file"),
)


@pytest.fixture(scope="module")
def planned(tiny: Path) -> Callable[[Path], RunConfig]:
    """The run of all cases, in a folder."""

    def config(output_dir: Path) -> RunConfig:
        return RunConfig(
            model=str(tiny / "model"),
            data=DataKnobs(path=str(tiny / "data.jsonl"), eval_fraction=0.1),
            lora=LoraKnobs(r=4, target_modules=("q_proj",)),
            gradient_checkpointing=False,
            dtype="float32",
            mixed_precision="no",
            max_length=32,
            per_device_train_batch_size=2,
            per_device_eval_batch_size=4,
            learning_rate=2e-3,
            max_steps=LAST,
            logging_steps=1,
            save_steps=2,
            eval_steps=3,
            output_dir=str(output_dir),
        )

    return config


@pytest.fixture(scope="module")
def undisturbed(launcher, planned, tmp_path_factory) -> dict[str, bytes]:
    """The final weights of runs without a fault, by schedule."""
    folder = tmp_path_factory.mktemp("undisturbed")
    whole = planned(folder / "whole").model_copy(update={"save_total_limit": 9})
    assert launcher.launch(whole).exit_code == 0
    smaller = next_rung(planned(folder / "smaller"), "training")
    assert (smaller.per_device_train_batch_size, smaller.gradient_accumulation_steps) == (1, 2)
    assert launcher.launch(smaller).exit_code == 0
    later = smaller.model_copy(update={"output_dir": str(folder / "later smaller")})
    shutil.copytree(whole.output_dir, later.output_dir, ignore=shutil.ignore_patterns("final", "checkpoint-[3-6]"))
    assert launcher.launch(later, resume=True).exit_code == 0
    return {run.name: weights(run) for run in folder.iterdir()}


def weights(output_dir: Path) -> bytes:
    return (output_dir / "final" / "adapter_model.safetensors").read_bytes()


HEADER = """# Faults

Each fault is injected into a real run of the tiny model, six steps with a checkpoint every two. Where memory ends, the
launcher goes on by itself; after the others the run is launched again with `--resume`. In all cases the final weights
are those of a run without the fault, bit for bit.

The time is from the fault to the end of the first step that had not been done before, on two CPU cores; loading the
libraries comes on top. Written by `FITUNE_WRITE_TABLES=1 pytest tests/trainer/test_injected_faults.py`.

| fault | exit code | steps trained again | seconds |
|---|---|---|---|
"""


@pytest.fixture(scope="module")
def table():
    """Rows of the table, written at the end if that is asked for."""
    rows: list[str] = []
    yield rows
    if "FITUNE_WRITE_TABLES" in os.environ:
        TABLE.write_text(HEADER + "".join(f"{row}\n" for row in rows))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_only_steps_since_the_last_good_checkpoint_are_lost(
    case, launcher, planned, undisturbed, table, tmp_path, capsys
):
    config = planned(tmp_path / "run")
    output_dir = Path(config.output_dir)
    attempts = [launcher.launch(config, case.fault)]
    said = attempts[0].said + capsys.readouterr().err
    assert attempts[0].exit_code == case.exit_code, said
    assert case.says in said
    if case.exit_code:
        assert "run.yaml --resume`" in said
        if case.harm:
            case.harm(last_checkpoint(output_dir))
        attempts.append(launcher.launch(config, resume=True))
        assert attempts[1].exit_code == 0, attempts[1].said
        assert ("is damaged" in attempts[1].said) == (case.harm is not None)
    assert weights(output_dir) == undisturbed[case.same_as]
    assert sum(len(attempt.steps) for attempt in attempts) - LAST == case.lost
    last = read_records(output_dir)[-1]
    assert last.result.status == "completed"
    assert len(last.recoveries) == (0 if case.exit_code else 1)
    for recovery in last.recoveries:
        corrected = {name: after for name, (_before, after) in recovery.changes.items()}
        assert last.config == config.model_copy(update=corrected) == read_run_file(output_dir / CONFIG_FILE)
        assert (
            (output_dir / CONFIG_FILE).read_text().startswith("# The run in this folder, as it goes on after restart 1")
        )
    assert {folder.name for folder in output_dir.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    table.append(f"| {case} | {case.exit_code} | {case.lost} | {seconds_to_get_over(attempts):.1f} |")


def seconds_to_get_over(attempts: list[Attempt]) -> float:
    """From the fault to the first new step of another process, or to the end if no step was left."""
    struck = attempts[0].struck
    steps = [step for attempt in attempts for step in attempt.steps]
    hit = next((step.process for step in steps if step.time < struck), None)
    done = max((step.number for step in steps if step.process == hit), default=0)
    new = (step.time for step in steps if step.process != hit and step.number > done)
    return min(new, default=attempts[-1].ended) - struck


CHANGED = "the adapter is changed before --resume"


def test_changed_settings_of_the_adapter_are_refused_before_anything_is_loaded(launcher, planned, table, tmp_path):
    config = planned(tmp_path / "run")
    assert launcher.launch(config, "SIGTERM in a step").exit_code == 143
    before = sorted(tmp_path.rglob("*"))
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"^lora.r is 8, but the run in .* began with 4") as refusal:
        check(config.model_copy(update={"lora": LoraKnobs(r=8, target_modules=("q_proj",))}), resume=True)
    table.append(f"| {CHANGED} | {refusal.value.exit_code} | 0 | {time.monotonic() - began:.1f} |")
    assert "set it back" in refusal.value.hint
    assert sorted(tmp_path.rglob("*")) == before


def test_the_table_is_that_of_these_cases():
    rows = [line.split("|")[1:4] for line in TABLE.read_text().splitlines() if line.startswith("| ")][1:]
    expected = [[str(case), str(case.exit_code), str(case.lost)] for case in CASES]
    assert [[cell.strip() for cell in row] for row in rows] == [*expected, [CHANGED, "2", "0"]]
