"""A training loop without a trainer, as the harnesses of some measured runs have one."""

from dataclasses import dataclass
from typing import Any

import torch

from calibration.trace.harness import Harness
from calibration.trace.module_path import ModulePath
from calibration.trace.recorder import Recorder
from planner.config.run_config import RunConfig
from planner.step.step_spec import StepSpec

INPUTS = ("input_ids", "labels")


@dataclass
class Bare:
    """What a loop has that has no trainer."""

    model: Any
    optimizer: Any = None


def run_bare_loop(
    bare: Bare,
    config: RunConfig,
    step: StepSpec,
    harness: Harness,
    recorder: Recorder,
    path: ModulePath,
    labels: Any,  # noqa: ANN401 - the callback of `step_trace.py`, which cannot be imported here
) -> None:
    """Train the model for two steps, on one batch, with torch's own optimizer."""
    model = bare.model
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Without a word about it, torch takes its foreach loop.
    fused = step.optimizer == "adamw_torch_fused" or None
    bare.optimizer = torch.optim.AdamW(learns, fused=fused)
    names = (*INPUTS, "attention_mask") if step.masked else INPUTS
    inputs = {name: torch.empty((step.micro_batch, step.seq_len), dtype=torch.int64) for name in names}
    for name, tensor in inputs.items():
        recorder.label(tensor, name, "", "batch")
    with recorder:
        _train(model, bare.optimizer, inputs, harness, recorder, path, labels)


def _train(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: dict[str, torch.Tensor],
    harness: Harness,
    recorder: Recorder,
    path: ModulePath,
    labels: Any,  # noqa: ANN401
) -> None:
    output: Any = None
    for _ in range(2):
        optimizer.zero_grad()
        path.restart()
        recorder.begin("forward")
        output = model(**inputs)
        output.loss.backward()
        recorder.begin("step")
        labels.label_gradients()
        if harness.clips:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        labels.label_states()
        if harness.output == "step":
            output = None
    del output
