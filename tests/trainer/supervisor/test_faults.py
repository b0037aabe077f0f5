import errno
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from planner.config.run_config import DataKnobs
from profiles.errors import OutOfMemory, RunError
from trainer.run_folder.checkpoints import last_checkpoint
from trainer.run_folder.record import read_records

pytestmark = pytest.mark.slow


def fail_at(monkeypatch, owner, name, call, error):
    """Makes the `call`-th call of a method raise `error`."""
    original = getattr(owner, name)
    calls = []

    def method(self, *args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, method)


def full_disk():
    return OSError(errno.ENOSPC, "No space left on device")


def memory_end():
    import torch

    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def cpu_memory_end():
    return RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried ...")


@pytest.mark.parametrize("error", [memory_end, cpu_memory_end, MemoryError])
def test_the_end_of_memory_is_told_with_the_step_and_the_way_on(tiny_config, train, monkeypatch, error):
    from trl import SFTTrainer

    fail_at(monkeypatch, SFTTrainer, "training_step", 3, error())
    config = tiny_config(save_steps=1)
    with pytest.raises(
        OutOfMemory, match=r"^out of memory in step 3 of 3, with micro-batches of 2 rows of up to 64"
    ) as stop:
        train(config)
    assert "set per_device_train_batch_size to 1 and set gradient_accumulation_steps to 2" in stop.value.hint
    assert (stop.value.moment, stop.value.step) == ("training", 2)
    assert "checkpoint-2 is whole; continue with `fitune launch run.yaml --resume`" in stop.value.hint
    assert read_records(Path(config.output_dir))[-1].result.status == "failed"


@pytest.mark.parametrize(
    ("call", "moment", "when"),
    [
        (1, "probing", "on the longest batch, before step 1 of 3"),
        (3, "evaluation", "in the evaluation before step 1 of 3"),
    ],
)
def test_memory_that_ends_on_the_longest_batch_is_told_so(tiny_config, train, tiny, monkeypatch, call, moment, when):
    from trainer.loop.probe import Probe

    fail_at(monkeypatch, Probe, "_loss", call, memory_end())
    data = DataKnobs(path=str(tiny / "data.jsonl"), eval_fraction=0.1)
    with pytest.raises(OutOfMemory, match=f"^out of memory {when}") as stop:
        train(tiny_config(data=data, gradient_accumulation_steps=2))
    assert stop.value.moment == moment


def test_a_full_disk_leaves_the_checkpoint_before(tiny_config, train, monkeypatch):
    from transformers import Trainer

    fail_at(monkeypatch, Trainer, "_save_optimizer_and_scheduler", 2, full_disk())
    config = tiny_config(save_steps=1)
    with pytest.raises(
        RunError, match=r"a disk is full while saving after step 2 of 3; the run writes to .*run"
    ) as stop:
        train(config)
    assert "checkpoint-1 is whole" in stop.value.hint
    assert [folder.name for folder in Path(config.output_dir).glob("checkpoint-*")] == ["checkpoint-1"]
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert train(config, resume=True).result.steps == 3


def test_a_disk_that_fills_at_the_end_leaves_no_half_result(tiny_config, train, monkeypatch):
    from peft import PeftModel
    from safetensors import SafetensorError

    words = "Error while serializing: I/O error: No space left on device (os error 28)"
    fail_at(monkeypatch, PeftModel, "save_pretrained", 2, SafetensorError(words))
    config = tiny_config()
    with pytest.raises(RunError, match="a disk is full while saving after step 3 of 3"):
        train(config)
    assert not (Path(config.output_dir) / "final").exists()
    assert last_checkpoint(Path(config.output_dir)).name == "checkpoint-3"


def test_memory_that_ends_before_the_first_step_is_told_too(tiny_config, train, monkeypatch):
    from transformers import AutoModelForCausalLM

    def fail(*_, **__):
        raise memory_end()

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(OutOfMemory, match="out of memory while the model was loaded"):
        train(tiny_config())


def test_the_end_of_another_process_is_told_with_the_way_on(tiny_config, train, monkeypatch):
    from trl import SFTTrainer

    # What gloo says in the process that is left.
    gone = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1246.")
    fail_at(monkeypatch, SFTTrainer, "training_step", 3, gone)
    with pytest.raises(RunError, match="another process of the run ended in step 3 of 3") as stop:
        train(tiny_config(save_steps=1))
    assert "checkpoint-2 is whole" in stop.value.hint


def test_other_errors_are_not_explained_away(tiny_config, train, monkeypatch):
    from trl import SFTTrainer

    fail_at(monkeypatch, SFTTrainer, "training_step", 1, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(tiny_config())


def test_a_loss_that_is_no_number_stops_the_run():
    from trainer.supervisor.faults import FiniteLoss

    state = SimpleNamespace(global_step=7)
    FiniteLoss().on_log(None, state, None, logs={"loss": 2.0})
    FiniteLoss().on_log(None, state, None, logs={"eval_loss": math.nan})
    with pytest.raises(RunError, match="the loss is nan at step 7") as stop:
        FiniteLoss().on_log(None, state, None, logs={"loss": math.nan})
    assert "lower learning_rate" in stop.value.hint
