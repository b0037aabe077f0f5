from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from planner.config.run_config import DataKnobs, LoraKnobs, RunConfig
from tests.trainer.injected import Launcher


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny `model` and its `data.jsonl`."""
    from trainer.tiny_model import write_tiny_data, write_tiny_model

    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_model(folder / "model")
    write_tiny_data(folder / "data.jsonl", num_rows=48)
    return folder


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Launches runs in processes that have the libraries loaded."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_HUB_OFFLINE", "1")
        yield Launcher(tmp_path_factory.mktemp("launches"))


@pytest.fixture
def tiny_config(tiny: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """Makes a LoRA run of the tiny model on the CPU, with some knobs changed."""

    def config(**knobs: object) -> RunConfig:
        usual = {
            "model": str(tiny / "model"),
            "data": DataKnobs(path=str(tiny / "data.jsonl")),
            "dtype": "float32",
            "mixed_precision": "no",
            "max_length": 64,
            "per_device_train_batch_size": 2,
            "learning_rate": 2e-3,
            "max_steps": 3,
            "logging_steps": 1,
            "output_dir": str(tmp_path / "run"),
        }
        if knobs.get("method") != "full":
            usual["lora"] = LoraKnobs(r=8)
        return RunConfig(**{**usual, **knobs})

    return config


@pytest.fixture
def data_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes text into a data file."""

    def write(text: str | bytes, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Trains a configuration in this process and returns its record."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run_it(config: RunConfig, **job: object) -> object:
        import torch
        from rich.console import Console

        from trainer.loop.progress import Lines
        from trainer.run import Job, run
        from trainer.supervisor.interruption import Interruption

        # Threads that wait for each other are slow where other processes want the cores too.
        torch.set_num_threads(1)
        console = Console(stderr=True)
        return run(Job(config, Path("run.yaml"), **job), Lines(console), Interruption(), console)

    return run_it
