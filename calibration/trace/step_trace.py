"""Traces the trainer's own step on fake tensors: no weights, no GPU, every allocation.

The trainer builds and wraps the model, makes the optimizer, and trains for two steps; only the tensors are fake and the
operators are those of a GPU (`calibration.trace.gpu_operators`).
"""

import contextlib
import gc
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from peft import PeftModel
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.models.mixtral import modeling_mixtral

from calibration.allocator.stream import Kind, Stream
from calibration.trace.bare_loop import Bare, run_bare_loop
from calibration.trace.fake_batches import FakeBatches, examples, tokenizer
from calibration.trace.fake_cards import FollowBuckets, fake_cards, lay_out
from calibration.trace.fake_model import held_apart, layer_lists, meta_model, quantization_constants, to_fake, wrapped
from calibration.trace.fused_layers import fused_layers
from calibration.trace.gpu_bitsandbytes import paged_states
from calibration.trace.gpu_operators import as_if_real, as_on_gpu, kernels, scratch
from calibration.trace.harness import TRAINER, Harness
from calibration.trace.loss_paths import take_loss_path
from calibration.trace.module_path import ModulePath
from calibration.trace.recorder import Recorder
from calibration.trace.repeated_layers import Stack, Trace, UnevenLayersError, with_all_layers
from calibration.trace.step_config import asks_before, asks_in_step, in_bfloat16, run_config
from planner.config.run_config import RunConfig
from planner.step.step_spec import StepSpec
from profiles.errors import UnsupportedError
from profiles.optimizer import find_optimizer
from profiles.peft_method import find_method
from trainer.loop.resizing import resizes_told
from trainer.model.adapter import first_line
from trainer.objectives.objective import make_trainer
from trainer.run import quiet_libraries

ROUTER_LOSS = "load_balancing_loss_func"
"""Transformers' name of the loss over the routers of all layers."""

LAYER_OPTIONS = {"adapter_layers", "layers_to_transform", "layer_replication"}
"""Options of PEFT that say which layers of the whole model get an adapter."""

OVER_LAYERS = {"ADALORA", "LILY", "SHADOW"}
"""Methods with a loss over the adapters of all layers, with weights that layers share, or with layers of their own."""


OF_FEW_LAYERS = (RuntimeError, LookupError, AttributeError, TypeError)
"""Errors of code that counts the layers of the whole model; of any other code, the whole trace has them too."""


def trace(
    architecture: PreTrainedConfig,
    step: StepSpec,
    *,
    whole: bool = False,
    workspace_bytes: int = 0,
    harness: Harness = TRAINER,
) -> Stream:
    """Two training steps of a model of this configuration, and an evaluation where the step has one.

    Unless `whole`, layers that are like others are left out and written into the stream afterwards; an adapter that has
    to do with all layers at once needs them all. `workspace_bytes` is cuBLAS's workspace on the card, 0 on a CPU. The
    loop is that of the trainer, or of another `harness`, which knows no objective but sft.

    Raises UnsupportedError if a library that the step needs is not installed.
    """
    try:
        if not whole and not _spans_layers(step):
            with contextlib.suppress(UnevenLayersError, *OF_FEW_LAYERS):
                return with_all_layers(*_traced(architecture, step, False, workspace_bytes, harness)).stream
        return _traced(architecture, step, True, workspace_bytes, harness)[0].stream
    except ImportError as error:
        raise UnsupportedError(f"the step cannot be traced: {first_line(error)}") from error


def _spans_layers(step: StepSpec) -> bool:
    """Whether the adapter makes a tensor or takes a loss over all layers at once, or names some by their number."""
    if step.adapter is None:
        return False
    method = find_method(step.adapter.peft_type)
    options = dict(step.adapter.options or ())
    return method.name in OVER_LAYERS or method.trains == "prompt" or not LAYER_OPTIONS.isdisjoint(options)


def _traced(
    architecture: PreTrainedConfig, step: StepSpec, whole: bool, workspace_bytes: int, harness: Harness
) -> tuple[Trace, list[Stack]]:
    """What the trainer did, and the lists of layers that were cut short."""
    on_gpu = as_on_gpu(step) if step.device == "cuda" else contextlib.nullcontext()
    step = in_bfloat16(step)
    with _alone(), tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        config = run_config(step, architecture.model_type).model_copy(update={"output_dir": folder})
        stack.enter_context(fake_cards(config))
        trainer, stacks = _trainer(config, architecture, whole, harness)
        with FakeTensorMode(allow_non_fake_inputs=True), as_if_real(step), on_gpu:
            for network in _networks(trainer).values():
                to_fake(network, step)
            lay_out(trainer, config)
            networks = _networks(trainer)
            with ModulePath(networks, _layers(networks)) as path, _balancing(networks, path):
                recorder = Recorder(
                    path,
                    kernels(step),
                    scratch(step),
                    in_place=step.device == "cuda",
                    all_true=not step.masked,
                    workspace_bytes=workspace_bytes,
                )
                for prefix, network in networks.items():
                    label_loaded(network, prefix, recorder)
                _record(trainer, config, step, harness, recorder, path)
    return Trace(recorder.stream, recorder.allocation_layers, recorder.event_layers, recorder.parts), stacks


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let nothing of a trace reach the user or the next: no notices, no models that move, no garbage at any time.

    Reference cycles would end when Python happens to look for them, which makes no two traces alike.
    """
    collects, level = gc.isenabled(), logging.root.manager.disable
    with (
        quiet_libraries(),
        warnings.catch_warnings(action="ignore"),
        # A model without weights is where it is to be.
        patch.object(torch.nn.Module, "to", _stay),
        patch.object(PreTrainedModel, "to", _stay),
    ):
        gc.disable()
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
            if collects:
                gc.enable()


def _stay(module: torch.nn.Module, *_: object, **__: object) -> torch.nn.Module:
    return module


def _trainer(
    config: RunConfig, architecture: PreTrainedConfig, whole: bool, harness: Harness
) -> tuple[Trainer | Bare, list[Stack]]:
    """The trainer of the run, with its model on the meta device. A reference that answers before is not asked."""
    model, stacks = meta_model(config, architecture, whole)
    try:
        model = wrapped(model, config)
    except NotImplementedError as error:
        # What torch says of a tensor on the meta device.
        raise UnsupportedError(
            f"{config.peft.type if config.peft else config.method} cannot be traced: its shape follows from values, "
            "and a trace has none"
        ) from error
    if harness.loop == "bare":
        return Bare(model), stacks
    if isinstance(model, PeftModel):
        # TRL's copy of an adapter has no weights either.
        model.add_adapter = partial(model.add_adapter, low_cpu_mem_usage=True)
    trainer = make_trainer(asks_in_step(config), model, tokenizer(), examples(config, architecture))
    if asks_before(config):
        trainer.ref_model, trainer.precompute_ref_logps = None, True
    trainer.args.save_strategy = "no"
    return trainer, stacks


def _networks(trainer: Trainer | Bare) -> dict[str, torch.nn.Module]:
    """The model, and the copy that is its reference if there is one, by what their paths begin with."""
    reference = getattr(trainer, "ref_model", None)
    return {"": trainer.model} | ({"reference.": reference} if reference is not None else {})


def _layers(networks: dict[str, torch.nn.Module]) -> list[str]:
    """The paths of all layers."""
    return [
        f"{prefix}{path}.{number}"
        for prefix, network in networks.items()
        for path, layers in layer_lists(network).items()
        for number in range(len(layers))
    ]


@contextlib.contextmanager
def _balancing(networks: dict[str, torch.nn.Module], path: ModulePath) -> Iterator[None]:
    """Let `path` know of the loss over the routers of all layers, where a model's code has one."""
    # TRL takes Mixtral's for all models.
    sources = {modeling_mixtral.__name__}
    sources |= {type(module).__module__ for network in networks.values() for module in network.modules()}
    with contextlib.ExitStack() as stack:
        for source in map(sys.modules.__getitem__, sources):
            if hasattr(source, ROUTER_LOSS):
                replacement = path.balancing(getattr(source, ROUTER_LOSS))
                stack.enter_context(patch.object(source, ROUTER_LOSS, replacement))
        yield


def _record(
    trainer: Trainer | Bare, config: RunConfig, step: StepSpec, harness: Harness, recorder: Recorder, path: ModulePath
) -> None:
    phases = Phases(trainer, recorder, path)
    if isinstance(trainer, Bare):
        take_loss_path(trainer, replace(step, output_alive=False))
        with fused_layers(trainer.model, step):
            run_bare_loop(trainer, config, step, harness, recorder, path, phases)
        return
    take_loss_path(trainer, step)
    trainer.add_callback(phases)
    trainer.add_callback(FollowBuckets(trainer, recorder))
    trainer.training_step = _followed_by_phase(trainer, recorder)
    batches = FakeBatches(trainer, config, config.per_device_train_batch_size, recorder)
    trainer.get_train_dataloader = lambda: batches
    with fused_layers(trainer.model, step), _paging(step, recorder), recorder, resizes_told(recorder.resized):
        trainer.train()
        if step.eval_batch:
            recorder.begin("evaluation")
            inputs = FakeBatches(trainer, config, config.per_device_eval_batch_size, recorder).batch()
            trainer.prediction_step(trainer.model, inputs, prediction_loss_only=True)


def _paging(step: StepSpec, recorder: Recorder) -> contextlib.AbstractContextManager[None]:
    """Where the states of a paged optimizer of bitsandbytes live; others, also such as are not described, have none."""
    if step.device == "cpu" or not step.optimizer.startswith("paged_"):
        return contextlib.nullcontext()
    return paged_states(find_optimizer(step.optimizer), recorder)


def _followed_by_phase(trainer: Trainer, recorder: Recorder) -> Callable[..., torch.Tensor]:
    """The trainer's passes forward and backward, after which the next phase begins."""
    passes: Callable[..., torch.Tensor] = trainer.training_step

    def training_step(*args: Any, **options: Any) -> torch.Tensor:  # noqa: ANN401 - the trainer's own
        loss = passes(*args, **options)
        recorder.begin("step" if trainer.accelerator.sync_gradients else "forward")
        return loss

    return training_step


def label_loaded(model: torch.nn.Module, prefix: str, recorder: Recorder) -> None:
    """Record what is there before the first step, with `prefix` before its path."""
    for path, parameter in model.named_parameters():
        name = prefix + path
        kind: Kind = "adapter" if parameter.requires_grad and hasattr(model, "peft_config") else "weight"
        if not parameter.is_floating_point():
            kind = "quantized weight"
        recorder.label(parameter, name, name.rpartition(".")[0], kind)
    for path, constants in quantization_constants(model).items():
        name = prefix + path
        recorder.label(constants, name, name.rpartition(".")[0], "quantized weight")
    for path, module in model.named_modules():
        for name, held in held_apart(module).items():
            for tensor in held.values():
                recorder.label(tensor, f"{prefix}{path}.{name}", prefix + path, "buffer")
    for path, buffer in model.named_buffers():
        name = prefix + path
        recorder.label(buffer, name, name.rpartition(".")[0], "buffer")


class Phases(TrainerCallback):  # type: ignore[misc]
    """Tells the recorder which phase of a step begins, and what gradients and states of the optimizer are."""

    def __init__(self, trainer: Trainer | Bare, recorder: Recorder, path: ModulePath) -> None:
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
        self.label_gradients()

    def label_gradients(self) -> None:
        """Say of each gradient what it is."""
        for parameter, name in self._trainables():
            if parameter.grad is not None:
                self._recorder.label(parameter.grad, name, name.rpartition(".")[0], "gradient")

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """The optimizer has its states."""
        self.label_states()

    def label_states(self) -> None:
        """Say of each state of the optimizer what it is."""
        for parameter, name in self._trainables():
            for key, value in self._trainer.optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor) and not hasattr(value, "in_managed_memory"):
                    self._recorder.label(value, f"{name} {key}", name.rpartition(".")[0], "optimizer state")

    def _trainables(self) -> Iterator[tuple[torch.nn.Parameter, str]]:
        return ((p, self._names[id(p)]) for p in self._trainer.model.parameters() if p.requires_grad)
