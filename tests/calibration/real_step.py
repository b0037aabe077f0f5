"""A real step of the trainer on a CPU, counted tensor by tensor: what a trace with `device="cpu"` must say too."""

import tempfile

import torch
from transformers import PreTrainedConfig, Trainer, TrainerCallback

from calibration.trace.fake_batches import examples, tokenizer
from calibration.trace.step_config import run_config
from planner.step.step_spec import StepSpec
from trainer.loop.live_bytes import LiveBytes
from trainer.loop.probe import longest_examples
from trainer.model.build import empty_model, wrap_with_adapter
from trainer.objectives.objective import make_trainer
from trainer.run import quiet_libraries


def real_peaks(architecture: PreTrainedConfig, step: StepSpec) -> dict[str, int]:
    """The most bytes alive in each phase of two steps of a model with random weights."""
    torch.set_num_threads(1)
    with quiet_libraries(), tempfile.TemporaryDirectory() as folder:
        config = run_config(step).model_copy(update={"output_dir": folder})
        if config.objective == "reward":
            architecture.num_labels = 1
        model = wrap_with_adapter(empty_model(config, architecture), config)
        trainer = make_trainer(config, model, tokenizer(), examples(config, architecture))
        trainer.args.save_strategy = "no"
        batch = trainer.data_collator(
            longest_examples(config, config.per_device_train_batch_size, architecture.is_encoder_decoder)
        )
        trainer.get_train_dataloader = lambda: Batches(trainer, batch, config.per_device_train_batch_size)
        live = LiveBytes()
        trainer.add_callback(ForwardIsNext(live))
        trainer.training_step = _followed_by_step(trainer, live)
        networks = [network for network in (trainer.model, getattr(trainer, "ref_model", None)) if network is not None]
        live.watch((tensor for network in networks for tensor in (*network.parameters(), *network.buffers())), "load")
        with live:
            trainer.train()
    return dict(live.peaks)


def _followed_by_step(trainer: Trainer, live: LiveBytes):
    """The passes forward and backward, after which gradients are clipped and the optimizer steps."""
    passes = trainer.training_step

    def training_step(*args: object, **options: object) -> torch.Tensor:
        loss = passes(*args, **options)
        live.phase = "step"
        return loss

    return training_step


class ForwardIsNext(TrainerCallback):
    """Tells the count that a step begins."""

    def __init__(self, live: LiveBytes) -> None:
        self._live = live

    def on_step_begin(self, *_: object, **__: object) -> None:
        """The batch is passed forward."""
        self._live.phase = "forward"


class Batches:
    """The same batch for each of two steps."""

    def __init__(self, trainer: Trainer, batch: dict[str, object], batch_size: int) -> None:
        self.dataset = trainer.train_dataset
        self.batch_size = batch_size
        self._batch = batch

    def __len__(self) -> int:
        return 2

    def __iter__(self):
        return (
            {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in self._batch.items()} for _ in range(2)
        )
