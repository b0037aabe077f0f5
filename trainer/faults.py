"""What stops a run in the middle, told in a sentence that says what is kept and how to go on."""

import errno
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from planner.run_config import RunConfig
from profiles.errors import OutOfMemory, RunError
from trainer.interruption import Interruption

FAULTS = (RuntimeError, MemoryError, OSError, SafetensorError)
"""What libraries raise when memory or disk end."""


@dataclass(frozen=True, slots=True)
class Where:
    """How far the run was; `max_steps` is 0 before training begins."""

    step: int
    max_steps: int
    checkpoint: Path | None
    run_file: Path

    @property
    def moment(self) -> str:
        """What the run was doing."""
        if self.max_steps == 0:
            return "while the model was loaded"
        if self.step >= self.max_steps:
            return "after the last step"
        return f"in step {self.step + 1} of {self.max_steps}"

    @property
    def way_on(self) -> str:
        """What is kept, and the command that continues from it."""
        if self.checkpoint is None:
            return f"no checkpoint was written yet; start again with `fitune launch {self.run_file}`"
        return f"{self.checkpoint} is whole; continue with `fitune launch {self.run_file} --resume`"


@contextmanager
def explaining(config: RunConfig, where: Callable[[], Where]) -> Iterator[None]:
    """Turn the end of memory or disk inside the block into a RunError; `where` is asked then. Others pass."""
    try:
        yield
    except FAULTS as error:
        explained = explain(error, config, where())
        if explained is None:
            raise
        raise explained from error


def explain(error: BaseException, config: RunConfig, where: Where) -> RunError | None:
    """The end of memory or disk behind `error`, as an error for the user; None if it is neither."""
    if _is_out_of_memory(error):
        return OutOfMemory(
            f"out of memory {where.moment}, with micro-batches of {config.per_device_train_batch_size} rows of up to "
            f"{config.max_length} tokens",
            hint=f"{_smaller(config)}; {where.way_on}",
        )
    if _is_disk_full(error):
        moment = f"after step {where.step} of {where.max_steps}" if where.max_steps else where.moment
        return RunError(
            f"a disk is full {moment}; the run writes to {config.output_dir}",
            hint=f"free some space; {where.way_on}",
        )
    return None


class FiniteLoss(TrainerCallback):  # type: ignore[misc]
    """Stops a run whose loss is no number any more: every step after that one is lost."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        """Raise RunError if the loss that is logged is not finite."""
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise RunError(
                f"the loss is {loss} at step {state.global_step}",
                hint="lower learning_rate, raise warmup_steps, or use bf16 in place of fp16",
            )


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """Turns a signal during a step into a checkpoint and an orderly end."""

    def __init__(self, interruption: Interruption) -> None:
        self._interruption = interruption

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """There are steps to finish from here on."""
        self._interruption.in_step = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Save and stop, if a signal came."""
        if self._interruption.signal_number is not None:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """There are no more steps."""
        self._interruption.in_step = False


def _smaller(config: RunConfig) -> str:
    """The change that saves most memory and changes the result least."""
    if config.per_device_train_batch_size > 1:
        half = config.per_device_train_batch_size // 2
        return f"lower per_device_train_batch_size to {half} and raise gradient_accumulation_steps to match"
    if not config.gradient_checkpointing:
        return "set gradient_checkpointing to true"
    if config.loss == "full":
        return "set loss to fused"
    if config.method == "lora":
        return "set method to qlora with quantization nf4"
    return "lower max_length"


def _is_out_of_memory(error: BaseException) -> bool:
    # On a CPU torch raises a RuntimeError that only its text tells from others.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _is_disk_full(error: BaseException) -> bool:
    """Whether `error`, or what caused it, is a full disk: an OSError, or safetensors' or torch's own words for it."""
    chain = (error, error.__cause__, error.__context__)
    return any(
        (isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT))
        or any(words in str(one) for words in ("No space left on device", "os error 28", "file write failed"))
        for one in chain
        if one is not None
    )
