import json
import os
from pathlib import Path

import pytest

from planner.config.run_config import DataKnobs, LoraKnobs, ParallelKnobs, RunConfig
from planner.config.run_file import write_run_file
from profiles.errors import ConfigError
from trainer.run_folder.checkpoints import (
    CONFIG_FILE,
    FINAL,
    checkpoint_to_resume,
    discard_old_checkpoints,
    discard_partial_checkpoints,
    evaluations_since_best,
    holds_a_run,
    is_last_step,
    last_checkpoint,
    set_damaged_checkpoints_aside,
)
from trainer.run_folder.seal import seal


def add_checkpoint(output_dir: Path, step: int, *, sealed: bool = True, **state: object) -> Path:
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "optimizer.pt").write_bytes(b"states")
    account = {"global_step": step, "max_steps": 100, "log_history": [], "best_model_checkpoint": None, **state}
    (folder / "trainer_state.json").write_text(json.dumps(account))
    if sealed:
        seal(folder)
    return folder


def test_the_last_checkpoint_is_the_one_of_the_highest_step(tmp_path):
    for step in (90, 100, 8):
        add_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


def test_a_checkpoint_that_was_cut_off_does_not_count_and_can_be_discarded(tmp_path):
    whole = add_checkpoint(tmp_path, 10)
    partial = add_checkpoint(tmp_path, 20, sealed=False)
    assert last_checkpoint(tmp_path) == whole
    assert discard_partial_checkpoints(tmp_path) == [partial]
    assert whole.exists()
    assert not partial.exists()


def truncate(folder):
    os.truncate(folder / "adapter_model.safetensors", 3)


def lose(folder):
    (folder / "optimizer.pt").unlink()


def scramble(folder):
    (folder / "files.json").write_text("{")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (truncate, "adapter_model.safetensors has 3 of 7 bytes"),
        (lose, "optimizer.pt is missing"),
        (scramble, "files.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_counts(tmp_path, harm, words):
    whole = add_checkpoint(tmp_path, 10)
    harm(add_checkpoint(tmp_path, 20))
    assert last_checkpoint(tmp_path) == whole
    assert discard_partial_checkpoints(tmp_path) == []
    (remark,) = set_damaged_checkpoints_aside(tmp_path)
    assert remark == f"{tmp_path}/checkpoint-20 is damaged, {words}; it is kept as damaged-checkpoint-20 and not used"
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["checkpoint-10", "damaged-checkpoint-20"]
    assert set_damaged_checkpoints_aside(tmp_path) == []


@pytest.mark.parametrize(
    ("keep", "best", "kept"), [(2, None, [30, 40]), (2, 10, [10, 40]), (1, 10, [10, 40]), (3, 40, [20, 30, 40])]
)
def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path, keep, best, kept):
    for step in (10, 20, 30, 40):
        add_checkpoint(tmp_path, step)
    discard_old_checkpoints(tmp_path, keep, tmp_path / f"checkpoint-{best}" if best else None)
    assert sorted(tmp_path.iterdir()) == [tmp_path / f"checkpoint-{step}" for step in kept]


def test_a_checkpoint_that_is_not_sealed_yet_costs_no_older_one(tmp_path):
    add_checkpoint(tmp_path, 10)
    add_checkpoint(tmp_path, 20, sealed=False)
    discard_old_checkpoints(tmp_path, 1, None)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize(
    ("losses", "since"), [([], 0), ([3.0], 0), ([3.0, 2.0], 0), ([3.0, 2.0, 2.5, 2.0], 2), ([1.0, 2.0], 1)]
)
def test_evaluations_are_counted_from_the_best_one(losses, since):
    assert evaluations_since_best([{"loss": 0.5}, *({"eval_loss": loss} for loss in losses)]) == since


def test_a_run_that_stopped_early_has_no_step_left(tmp_path):
    history = [{"eval_loss": loss} for loss in (2.0, 2.1, 2.2)]
    checkpoint = add_checkpoint(tmp_path / "run", 30, log_history=history)
    config = first_part(tmp_path / "run").model_copy(update={"eval_steps": 10})
    assert not is_last_step(checkpoint, config)
    assert is_last_step(checkpoint, config.model_copy(update={"early_stopping_patience": 2}))
    assert not is_last_step(checkpoint, config.model_copy(update={"early_stopping_patience": 3}))


def test_a_folder_holds_a_run_if_a_new_one_would_mix_with_it(tmp_path):
    assert not holds_a_run(tmp_path / "none")
    (tmp_path / "record.jsonl").touch()
    add_checkpoint(tmp_path, 5, sealed=False)
    assert not holds_a_run(tmp_path)
    (tmp_path / FINAL).mkdir()
    assert holds_a_run(tmp_path)


def first_part(output_dir: Path) -> RunConfig:
    config = RunConfig(
        model="m",
        lora=LoraKnobs(),
        data=DataKnobs(path="d.jsonl"),
        output_dir=str(output_dir),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    write_run_file(config, output_dir / CONFIG_FILE)
    return config


def test_there_is_nothing_to_resume_without_a_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match="no checkpoint in"):
        checkpoint_to_resume(first_part(tmp_path))


def test_a_run_resumes_with_smaller_micro_batches_of_the_same_batch(tmp_path):
    config = first_part(tmp_path)
    checkpoint = add_checkpoint(tmp_path, 10)
    smaller = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "gradient_checkpointing": True}
    assert checkpoint_to_resume(config.model_copy(update=smaller)) == checkpoint


@pytest.mark.parametrize(
    ("knob", "value", "named"),
    [
        ("lora", LoraKnobs(r=8), "lora.r"),
        ("optim", "adamw_8bit", "optim"),
        ("seed", 1, "seed"),
        ("gradient_accumulation_steps", 4, "effective_batch_size"),
    ],
)
def test_another_run_is_not_resumed(tmp_path, knob, value, named):
    config = first_part(tmp_path)
    add_checkpoint(tmp_path, 10)
    with pytest.raises(ConfigError, match=f"^{named} is .* but the run in .* began with"):
        checkpoint_to_resume(config.model_copy(update={knob: value}))


def test_a_method_whose_checkpoints_keep_too_little_is_not_continued(tmp_path):
    config = RunConfig(model="any", method="peft", peft={"type": "adalora"}, output_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="ADALORA cannot go on from a checkpoint"):
        checkpoint_to_resume(config)


def shared(tmp_path, num_gpus, strategy):
    """A run that so many processes share, eight rows a step."""
    return RunConfig(
        model="m",
        lora=LoraKnobs(),
        num_gpus=num_gpus,
        parallel=None if num_gpus == 1 else ParallelKnobs(strategy=strategy),
        gradient_accumulation_steps=8 // num_gpus,
        output_dir=str(tmp_path),
    )


@pytest.mark.parametrize(
    ("strategy", "before", "after"), [("ddp", 4, 1), ("ddp", 1, 2), ("fsdp", 4, 2), ("fsdp", 2, 8), ("zero3", 2, 2)]
)
def test_checkpoints_are_read_by_another_number_of_processes_where_the_engine_can(tmp_path, strategy, before, after):
    write_run_file(shared(tmp_path, before, strategy), tmp_path / CONFIG_FILE)
    checkpoint = add_checkpoint(tmp_path, 10)
    assert checkpoint_to_resume(shared(tmp_path, after, strategy)) == checkpoint


def test_the_shares_of_one_engine_are_not_read_by_another(tmp_path):
    write_run_file(shared(tmp_path, 2, "fsdp"), tmp_path / CONFIG_FILE)
    add_checkpoint(tmp_path, 10)
    with pytest.raises(ConfigError, match=r"are those of fsdp, but the run is to go on with ddp"):
        checkpoint_to_resume(shared(tmp_path, 1, "fsdp"))


def test_deepspeed_goes_on_with_as_many_processes_as_it_began_with(tmp_path):
    write_run_file(shared(tmp_path, 4, "zero2"), tmp_path / CONFIG_FILE)
    add_checkpoint(tmp_path, 10)
    with pytest.raises(ConfigError, match=r"zero2 wrote its checkpoints with 4 processes, and cannot go on with 2"):
        checkpoint_to_resume(shared(tmp_path, 2, "zero2"))


def test_fewer_cards_need_more_accumulation_to_go_on(tmp_path):
    write_run_file(shared(tmp_path, 4, "fsdp"), tmp_path / CONFIG_FILE)
    add_checkpoint(tmp_path, 10)
    config = shared(tmp_path, 2, "fsdp").model_copy(update={"gradient_accumulation_steps": 2})
    with pytest.raises(ConfigError, match="effective_batch_size is 4") as refusal:
        checkpoint_to_resume(config)
    assert "with other cards, gradient_accumulation_steps makes up for it" in refusal.value.hint
