"""Traces the trainer's own step on fake tensors: no weights, no GPU, every allocation.

The trainer builds and wraps the model, makes the optimizer, and trains for two steps; only the tensors are fake and the
operators are those of a GPU (`calibration.gpu_operators`).
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from calibration.fake_model import layer_lists, meta_model, quantization_constants, to_fake, wrapped
from calibration.gpu_operators import as_if_real, as_on_gpu, kernels
from calibration.loss_paths import take_loss_path
from calibration.module_path import ModulePath
from calibration.recorder import Recorder
from calibration.repeated_layers import Stack, Trace, UnevenLayersError, with_all_layers
from calibration.step_config import in_bfloat16, run_config
from calibration.stream import Kind, Stream
from planner.run_config import RunConfig
from planner.step import StepSpec
from trainer.data import Examples
from trainer.objectives import make_trainer
from trainer.probe import longest_examples
from trainer.run import quiet_libraries


def trace(architecture: PreTrainedConfig, step: StepSpec, *, whole: bool = False, workspace_bytes: int = 0) -> Stream:
    """Two training steps of a model of this configuration, and an evaluation where the step has one.

    Unless `whole`, layers that are like others are left out and written into the stream afterwards. `workspace_bytes`
    is cuBLAS's workspace on the card, 0 on a CPU.
    """
    if not whole:
        with contextlib.suppress(UnevenLayersError):
            return with_all_layers(*_traced(architecture, step, False, workspace_bytes)).stream
    return _traced(architecture, step, True, workspace_bytes)[0].stream


def _traced(
    architecture: PreTrainedConfig, step: StepSpec, whole: bool, workspace_bytes: int
) -> tuple[Trace, list[Stack]]:
    """What the trainer did, and the lists of layers that were cut short."""
    on_gpu = as_on_gpu(step) if step.device == "cuda" else contextlib.nullcontext()
    step = in_bfloat16(step)
    with quiet_libraries(), tempfile.TemporaryDirectory() as folder:
        config = run_config(step).model_copy(update={"output_dir": folder})
        trainer, stacks = _trainer(config, architecture, step, whole)
        with FakeTensorMode(allow_non_fake_inputs=True), as_if_real(step), on_gpu:
            to_fake(trainer.model, step)
            layers = [f"{path}.{n}" for path, found in layer_lists(trainer.model).items() for n in range(len(found))]
            with ModulePath(trainer.model, layers) as path:
                recorder = Recorder(
                    path,
                    kernels(step),
                    in_place=step.device == "cuda",
                    all_true=not step.masked,
                    workspace_bytes=workspace_bytes,
                )
                _record(trainer, config, step, recorder, path)
    return Trace(recorder.stream, recorder.allocation_layers, recorder.event_layers), stacks


def _trainer(
    config: RunConfig, architecture: PreTrainedConfig, step: StepSpec, whole: bool
) -> tuple[Trainer, list[Stack]]:
    """The trainer of the run, with its model on the meta device."""
    model, stacks = meta_model(config, architecture, whole)
    model = wrapped(model, config)
    # A model without weights is where it is to be.
    model.to = lambda *_, **__: model
    tokenizer = _tokenizer()
    trainer = make_trainer(config, model, tokenizer, _examples(config, architecture))
    trainer.args.save_strategy = "no"
    return trainer, stacks


def _record(trainer: Trainer, config: RunConfig, step: StepSpec, recorder: Recorder, path: ModulePath) -> None:
    take_loss_path(trainer, step)
    label_loaded(trainer.model, recorder)
    trainer.add_callback(Phases(trainer, recorder, path))
    trainer.training_step = _followed_by_phase(trainer, recorder)
    trainer.get_train_dataloader = lambda: FakeBatches(trainer, config, step, recorder)
    with recorder:
        trainer.train()
        if step.eval_batch:
            recorder.begin("evaluation")
            inputs = FakeBatches(trainer, config, replace(step, micro_batch=step.eval_batch), recorder).batch()
            trainer.prediction_step(trainer.model, inputs, prediction_loss_only=True)


def _followed_by_phase(trainer: Trainer, recorder: Recorder) -> Callable[..., torch.Tensor]:
    """The trainer's passes forward and backward, after which the next phase begins."""
    passes: Callable[..., torch.Tensor] = trainer.training_step

    def training_step(*args: Any, **options: Any) -> torch.Tensor:  # noqa: ANN401 - the trainer's own
        loss = passes(*args, **options)
        recorder.begin("step" if trainer.accelerator.sync_gradients else "forward")
        return loss

    return training_step


def label_loaded(model: torch.nn.Module, recorder: Recorder) -> None:
    """Record what is there before the first step."""
    for name, parameter in model.named_parameters():
        kind: Kind = "adapter" if parameter.requires_grad and hasattr(model, "peft_config") else "weight"
        if not parameter.is_floating_point():
            kind = "quantized weight"
        recorder.label(parameter, name, name.rpartition(".")[0], kind)
    for name, constants in quantization_constants(model).items():
        recorder.label(constants, name, name.rpartition(".")[0], "quantized weight")
    for name, buffer in model.named_buffers():
        recorder.label(buffer, name, name.rpartition(".")[0], "buffer")


class Phases(TrainerCallback):  # type: ignore[misc]
    """Tells the recorder which phase of a step begins, and what gradients and states of the optimizer are."""

    def __init__(self, trainer: Trainer, recorder: Recorder, path: ModulePath) -> None:
        self._trainer = trainer
        self._recorder = recorder
        self._path = path
        self._names = {id(p): name for name, p in trainer.model.named_parameters()}

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """A forward pass is next."""
        self._path.restart()
        self._recorder.begin("forward")

    on_substep_end = on_step_begin

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """All gradients are there."""
        for parameter, name in self._trainables():
            if parameter.grad is not None:
                self._recorder.label(parameter.grad, name, name.rpartition(".")[0], "gradient")

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """The optimizer has its states."""
        for parameter, name in self._trainables():
            for key, value in self._trainer.optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    self._recorder.label(value, f"{name} {key}", name.rpartition(".")[0], "optimizer state")

    def _trainables(self) -> Iterator[tuple[torch.nn.Parameter, str]]:
        return ((p, self._names[id(p)]) for p in self._trainer.model.parameters() if p.requires_grad)


class FakeBatches:
    """Stands for the trainer's data loader: the longest batch of the run, again and again, as fake tensors."""

    def __init__(self, trainer: Trainer, config: RunConfig, step: StepSpec, recorder: Recorder) -> None:
        self.dataset = trainer.train_dataset
        self.batch_size = config.per_device_train_batch_size
        self._length = 2 * config.gradient_accumulation_steps
        encodes = trainer.model.config.is_encoder_decoder
        self._form = trainer.data_collator(longest_examples(config, self.batch_size, encodes))
        self._recorder = recorder

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.batch() for _ in range(self._length))

    def batch(self) -> dict[str, Any]:
        """One batch, made anew."""
        batch = {name: torch.empty_like(v) if isinstance(v, torch.Tensor) else v for name, v in self._form.items()}
        for name, value in batch.items():
            if isinstance(value, torch.Tensor):
                self._recorder.label(value, name, "", "batch")
        return batch


def _tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of a few words: a trainer asks for one, a traced step for none of its words."""
    words = {"padding": 0, "end": 1, "a": 2}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "a")))
    tokenizer.pad_token, tokenizer.eos_token = "padding", "end"
    return tokenizer


def _examples(config: RunConfig, architecture: PreTrainedConfig) -> Examples:
    """Rows that a trainer of the objective accepts; the batches that are traced are made without them."""
    if architecture.is_encoder_decoder:
        row: dict[str, object] = {"prompt": "a", "completion": "a"}
    elif config.objective == "sft":
        row = {"text": "a a"}
    elif config.objective == "kto":
        row = {"prompt": "a", "completion": "a", "label": True}
    else:
        row = {"prompt": "a", "chosen": "a", "rejected": "a a"}
    return Examples(Dataset.from_list([row] * 2), None, "completion" in row, False, ())
