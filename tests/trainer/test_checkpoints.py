from pathlib import Path

import pytest

from planner.run_config import DataKnobs, LoraKnobs, RunConfig
from planner.run_file import write_run_file
from profiles.errors import ConfigError
from trainer.checkpoints import (
    CONFIG_FILE,
    FINAL,
    checkpoint_to_resume,
    discard_partial_checkpoints,
    holds_a_run,
    last_checkpoint,
)


def add_checkpoint(output_dir: Path, step: int, state: str | None = '{"global_step": 3}') -> Path:
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").touch()
    if state is not None:
        (folder / "trainer_state.json").write_text(state)
    return folder


def test_the_last_checkpoint_is_the_one_of_the_highest_step(tmp_path):
    for step in (90, 100, 8):
        add_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


@pytest.mark.parametrize("state", [None, "", '{"global_'], ids=["no state", "empty state", "cut off state"])
def test_a_checkpoint_that_was_cut_off_does_not_count_and_can_be_discarded(tmp_path, state):
    whole = add_checkpoint(tmp_path, 10)
    partial = add_checkpoint(tmp_path, 20, state)
    assert last_checkpoint(tmp_path) == whole
    assert discard_partial_checkpoints(tmp_path) == [partial]
    assert whole.exists()
    assert not partial.exists()


def test_a_folder_holds_a_run_if_a_new_one_would_mix_with_it(tmp_path):
    assert not holds_a_run(tmp_path / "none")
    (tmp_path / "record.jsonl").touch()
    add_checkpoint(tmp_path, 5, None)
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
    ("knob", "value"),
    [("lora", LoraKnobs(r=8)), ("optim", "adamw_8bit"), ("seed", 1), ("gradient_accumulation_steps", 4)],
)
def test_another_run_is_not_resumed(tmp_path, knob, value):
    config = first_part(tmp_path)
    add_checkpoint(tmp_path, 10)
    named = "effective_batch_size" if knob.startswith("gradient") else knob
    with pytest.raises(ConfigError, match=f"^{named} is .* but the run in .* began with"):
        checkpoint_to_resume(config.model_copy(update={knob: value}))
