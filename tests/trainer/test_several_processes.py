"""Runs that several processes of a CPU share, over gloo: DDP, and torch's FSDP2 through accelerate."""

import json
from functools import cache
from pathlib import Path

import pytest

from planner.config.run_config import DataKnobs, LoraKnobs, ParallelKnobs, RunConfig
from trainer.run_folder.record import read_records
from trainer.supervisor.ladder import needed_bytes

pytestmark = pytest.mark.slow

LAST = 6
FSDP = ParallelKnobs(strategy="fsdp")
ADAPTER = LoraKnobs(r=4, target_modules=("q_proj", "down_proj"))
IN_BF16 = {"dtype": "bfloat16", "mixed_precision": "bf16"}
METHODS = {
    "lora": {"lora": ADAPTER},
    "full": {"method": "full", "learning_rate": 1e-3},
    "qlora": {"method": "qlora", "quantization": "nf4", "lora": ADAPTER, **IN_BF16},
}


@pytest.fixture(scope="module")
def planned(tiny, tmp_path_factory):
    """A run of six steps with eight rows each, whoever shares them, in a folder of its own."""

    def config(num_gpus=1, parallel=None, method="lora", output_dir=None):
        usual = {
            "model": str(tiny / "model"),
            "data": DataKnobs(path=str(tiny / "data.jsonl")),
            "dtype": "float32",
            "mixed_precision": "no",
            "max_length": 32,
            "gradient_checkpointing": False,
            "learning_rate": 2e-3,
            "max_steps": LAST,
            "save_steps": 2,
            "logging_steps": 1,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4 // num_gpus,
            "num_gpus": num_gpus,
            "parallel": parallel,
            "output_dir": output_dir or str(tmp_path_factory.mktemp("run")),
        }
        return RunConfig(**{**usual, **METHODS[method]})

    return config


@pytest.fixture(scope="module")
def trained(launcher, planned):
    """The same, trained without a fault, once for each way."""

    @cache
    def run(num_gpus, parallel, method):
        config = planned(num_gpus, parallel, method)
        attempt = launcher.launch(config)
        assert attempt.exit_code == 0, attempt.said
        return config

    return run


def losses(config):
    lines = [json.loads(line) for line in (Path(config.output_dir) / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def final(config):
    (file,) = (Path(config.output_dir) / "final").glob("*.safetensors")
    return file


def weights(config):
    from safetensors.torch import load_file

    return load_file(final(config))


def assert_alike(config, other):
    """The same losses and weights but for the order of sums: Adam makes a full step of the smallest gradient."""
    import torch

    assert losses(config) == pytest.approx(losses(other), rel=1e-5)
    found, expected = weights(config), weights(other)
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("num_gpus", "parallel", "method"),
    [(4, None, "lora"), (2, None, "full"), (2, FSDP, "lora"), (2, FSDP, "full")],
    ids=["ddp of 4, lora", "ddp of 2, full", "fsdp of 2, lora", "fsdp of 2, full"],
)
def test_processes_that_share_a_run_learn_what_one_does_with_more_accumulation(trained, num_gpus, parallel, method):
    assert_alike(trained(num_gpus, parallel, method), trained(1, None, method))


@pytest.mark.parametrize(
    ("parallel", "method"), [(None, "full"), (FSDP, "lora"), (FSDP, "full")], ids=["ddp", "fsdp, lora", "fsdp, full"]
)
def test_the_memory_of_a_process_is_the_predicted_one(trained, parallel, method):
    config = trained(2, parallel, method)
    measured = read_records(Path(config.output_dir))[-1].measured.allocated_bytes
    assert needed_bytes(config, "training") == pytest.approx(measured, rel=0.08)


def test_shares_of_four_bit_weights_train(trained):
    one, two = trained(1, None, "qlora"), trained(2, FSDP, "qlora")
    assert losses(two) == pytest.approx(losses(one), rel=5e-3)
    assert weights(two).keys() == weights(one).keys()


@pytest.mark.parametrize(("parallel", "method"), [(None, "full"), (FSDP, "lora")], ids=["ddp", "fsdp"])
def test_a_run_goes_on_by_itself_after_the_loss_of_a_process(launcher, planned, trained, parallel, method, capsys):
    config = planned(2, parallel, method)
    attempt = launcher.launch(config, "kill -9 in a step")
    assert attempt.exit_code == 0, attempt.said
    said = capsys.readouterr().err
    assert said.startswith("a process of the run was killed, and the others of the run were ended; restart 1, from ")
    # The launcher says it, once; the process that is left says nothing.
    assert "error:" not in attempt.said
    assert final(config).read_bytes() == final(trained(2, parallel, method)).read_bytes()
    (recovery,) = read_records(Path(config.output_dir))[-1].recoveries
    assert (recovery.lost, recovery.step, recovery.resumed_from) == ("a process of the run was killed", 3, 2)


@pytest.mark.parametrize(
    ("parallel", "before", "after"), [(FSDP, 4, 2), (None, 2, 1)], ids=["fsdp of 4 to 2", "ddp of 2 to 1"]
)
def test_another_number_of_processes_goes_on_with_a_run(launcher, planned, trained, parallel, before, after):
    first = planned(before, parallel)
    assert launcher.launch(first, "SIGTERM in a step").exit_code == 143
    second = planned(after, parallel if after > 1 else None, output_dir=first.output_dir)
    attempt = launcher.launch(second, resume=True)
    assert attempt.exit_code == 0, attempt.said
    assert_alike(second, trained(1, None, "lora"))


def test_the_end_of_memory_in_one_process_makes_all_go_on_with_less(launcher, planned, capsys):
    config = planned(2, FSDP)
    attempt = launcher.launch(config, "memory ends in a step")
    assert attempt.exit_code == 0, attempt.said
    assert "per_device_train_batch_size 2 -> 1, gradient_accumulation_steps 2 -> 4" in capsys.readouterr().err
    (recovery,) = read_records(Path(config.output_dir))[-1].recoveries
    assert (recovery.moment, recovery.lost) == ("training", None)
