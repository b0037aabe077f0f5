"""Every objective with every method, trained for real on tiny models on a CPU.

`python -m tests.trainer.objective_runs` runs all of them and writes the table in trainer/README.md.
"""

import json
import os
import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from rich.console import Console
from transformers import Trainer

from planner.config.run_config import DataKnobs, LoraKnobs, Objective, RunConfig
from planner.memory.estimate import estimate
from planner.step.resolve import resolve_step
from profiles.model_catalog import resolve_model
from trainer.tiny_model import write_tiny_data, write_tiny_judgements, write_tiny_model, write_tiny_preferences

README = Path(__file__).parents[2] / "trainer" / "README.md"
BEGIN, END = "<!-- objectives: python -m tests.trainer.objective_runs -->", "<!-- end of objectives -->"

OBJECTIVES: dict[str, tuple[Objective, str, str]] = {
    "sft": ("sft", "llama", "answers"),
    "dpo": ("dpo", "llama", "pairs"),
    "ipo": ("ipo", "llama", "pairs"),
    "orpo": ("orpo", "llama", "pairs"),
    "kto": ("kto", "llama", "judged"),
    "reward": ("reward", "llama", "pairs"),
    "sft of an encoder-decoder": ("sft", "t5", "answers"),
}
"""For each row of the table the objective, the family of the model, and the data."""

METHODS: dict[str, dict[str, object]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora", "lora": LoraKnobs(r=8)},
    "qlora nf4": {"method": "qlora", "lora": LoraKnobs(r=8), "quantization": "nf4"},
}

CASES = tuple((row, method) for row in OBJECTIVES for method in METHODS)
STEPS = 6


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run: the loss of each step, what was measured and predicted, what its folder holds."""

    config: RunConfig
    losses: tuple[float, ...]
    measured_bytes: int
    predicted_bytes: int

    @property
    def improvement(self) -> tuple[float, float]:
        """Mean loss of the first and of the last two steps."""
        return sum(self.losses[:2]) / 2, sum(self.losses[-2:]) / 2


@cache
def materials() -> Path:
    """A folder with the tiny models and the data, made once for a process."""
    folder = Path(tempfile.mkdtemp(prefix="fitune-objectives-"))
    for family in ("llama", "t5"):
        write_tiny_model(folder / family, family)
    for name, write in (
        ("answers", write_tiny_data),
        ("pairs", write_tiny_preferences),
        ("judged", write_tiny_judgements),
    ):
        write(folder / f"{name}.jsonl", num_rows=32)
    return folder


def run_config(row: str, method: str, **knobs: object) -> RunConfig:
    """The run of one cell of the table, with some knobs changed."""
    objective, family, data = OBJECTIVES[row]
    folder = materials()
    values: dict[str, object] = {
        "model": str(folder / family),
        "objective": objective,
        "data": DataKnobs(path=str(folder / f"{data}.jsonl")),
        "dtype": "float32",
        "mixed_precision": "no",
        "max_length": 64,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2 if family == "t5" and method != "full" else 2e-3,
        "lr_scheduler_type": "constant",
        "max_steps": STEPS,
        "logging_steps": 1,
        "output_dir": str(folder / f"{row} {method}"),
    }
    if family == "t5":
        values["loss"] = "full"
    return RunConfig.model_validate(values | METHODS[method] | knobs)


@cache
def outcome(row: str, method: str) -> Outcome:
    """The run of one cell, made once for a process."""
    return train(run_config(row, method))


def train(config: RunConfig, resume: bool = False) -> Outcome:
    """Train `config` in this process."""
    from trainer.loop.progress import Lines
    from trainer.run import Job, run
    from trainer.supervisor.interruption import Interruption

    os.environ["HF_HUB_OFFLINE"] = "1"
    # Threads that wait for each other are slow where other processes want the cores too.
    torch.set_num_threads(1)
    quiet = Console(stderr=True, quiet=True)
    record = run(Job(config, Path("run.yaml"), resume=resume), Lines(quiet), Interruption(), quiet)
    model = resolve_model(config.model).profile
    state = json.loads((last_checkpoint(config) / "trainer_state.json").read_text())
    return Outcome(
        config=config,
        losses=tuple(entry["loss"] for entry in state["log_history"] if "loss" in entry),
        measured_bytes=record.measured.allocated_bytes or 0,
        predicted_bytes=estimate(model, resolve_step(config, model, None), None).allocated_bytes,
    )


def make_trainer(config: RunConfig) -> Trainer:
    """A trainer of `config` that is ready to train."""
    from trainer.run import prepare, quiet_libraries

    torch.set_num_threads(1)
    with quiet_libraries():
        return prepare(config, torch.device("cpu"), Console(stderr=True, quiet=True))


def last_checkpoint(config: RunConfig) -> Path:
    """The newest checkpoint of a run."""
    from trainer.run_folder.checkpoints import last_checkpoint as newest

    found = newest(Path(config.output_dir))
    assert found is not None
    return found


def reloaded_output(config: RunConfig, folder: Path | None) -> torch.Tensor:
    """Logits or scores of the model saved in `folder`, or of the base (None), for a few tokens."""
    from peft import PeftModel

    from trainer.model.build import load_architecture, model_class

    architecture = load_architecture(config)
    auto = model_class(config, architecture)
    torch.manual_seed(0)
    if config.method == "full" and folder is not None:
        model = auto.from_pretrained(folder, dtype=torch.float32)
    else:
        model = auto.from_pretrained(config.model, config=architecture, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, folder) if folder is not None else model
    tokens = torch.arange(10, 26).view(1, -1)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if architecture.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    with torch.no_grad():
        output: torch.Tensor = model.eval()(**inputs).logits
    return output


def table() -> list[str]:
    """The lines of the table, from runs of all cells."""
    lines = [f"| objective | {' | '.join(METHODS)} |", f"|---|{'---|' * len(METHODS)}"]
    for row in OBJECTIVES:
        cells = []
        for method in METHODS:
            first, last = outcome(row, method).improvement
            error = outcome(row, method).predicted_bytes / outcome(row, method).measured_bytes - 1
            cells.append(f"{first:.3g} to {last:.3g}, memory {error:+.1%}")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Write the table into trainer/README.md."""
    block = "\n".join((BEGIN, *table(), END))
    # The runs take minutes, in which others may write.
    text = README.read_text(encoding="utf-8")
    README.write_text(re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", block, text, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
