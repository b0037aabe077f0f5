"""What stops a run in the middle, told in a sentence that says what is kept and how to go on."""

import errno
import math
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from planner.config.run_config import RunConfig
from profiles.errors import Moment, OutOfMemory, ProcessLost, RunError
from trainer.processes.agreement import largest
from trainer.run_folder.checkpoints import way_on
from trainer.supervisor.interruption import Interruption
from trainer.supervisor.ladder import advice

FAULTS = (RuntimeError, MemoryError, OSError, SafetensorError)
"""What libraries raise when memory or disk end."""

TORCH_CANNOT_WRITE = ("iostream error", "unexpected pos", "file write failed")
"""What torch.save says of a file that it could not write; the reason does not get through."""

GLOO_ALONE = ("Connection closed by peer", "Connection reset by peer")
"""What gloo says, in a plain RuntimeError, when another process is gone; NCCL has errors of its own."""

MOMENTS: tuple[tuple[Moment, frozenset[str]], ...] = (
    ("saving", frozenset({"Trainer._save_checkpoint", "SealCheckpoints.on_save", "save_final"})),
    ("evaluation", frozenset({"Trainer.evaluate", "Probe._evaluate"})),
    ("probing", frozenset({"Probe.on_train_begin"})),
)
"""Functions of Transformers and of this package in which a run does something else than train, innermost first."""


@dataclass(frozen=True, slots=True)
class Where:
    """How far the run was; `max_steps` is 0 before training begins."""

    step: int
    max_steps: int
    checkpoint: Path | None
    run_file: Path

    def during(self, moment: Moment) -> str:
        """What the run was doing, in words."""
        if self.max_steps == 0:
            return "while the model was loaded"
        if moment == "training" and self.step < self.max_steps:
            return f"in step {self.step + 1} of {self.max_steps}"
        doing = {
            "probing": "on the longest batch, ",
            "evaluation": "in the evaluation ",
            "saving": "while saving ",
        }.get(moment, "")
        when = f"after step {self.step}" if self.step else "before step 1"
        return f"{doing}{when} of {self.max_steps}"


@contextmanager
def explaining(config: RunConfig, where: Callable[[], Where]) -> Iterator[None]:
    """Turn the end of memory, disk or another process inside the block into a RunError; `where` is asked then."""
    try:
        yield
    except FAULTS as error:
        explained = explain(error, config, where())
        if explained is None:
            raise
        raise explained from error


def explain(error: BaseException, config: RunConfig, where: Where) -> RunError | None:
    """The end of memory, disk or another process behind `error`, as an error for the user; None if it is none."""
    if _is_out_of_memory(error):
        moment: Moment = moment_of(error) if where.max_steps else "loading"
        return OutOfMemory(
            f"out of memory {where.during(moment)}, with micro-batches of {config.per_device_train_batch_size} rows of "
            f"up to {config.max_length} tokens",
            hint=f"{advice(config, moment)}; {way_on(where.checkpoint, where.run_file)}",
            moment=moment,
            step=where.step,
        )
    if _is_disk_full(error):
        return RunError(
            f"a disk is full {where.during('saving')}; the run writes to {config.output_dir}",
            hint=f"free some space; {way_on(where.checkpoint, where.run_file)}",
        )
    if moment_of(error) == "saving" and any(words in str(error) for words in TORCH_CANNOT_WRITE):
        return RunError(
            f"a file could not be written {where.during('saving')}, most often because a disk is full; the run writes "
            f"to {config.output_dir}",
            hint=f"free some space; {way_on(where.checkpoint, where.run_file)}",
        )
    if isinstance(error, torch.distributed.DistError) or any(words in str(error) for words in GLOO_ALONE):
        return ProcessLost(
            f"another process of the run ended {where.during(moment_of(error))}, so this one cannot go on",
            hint=way_on(where.checkpoint, where.run_file),
            step=where.step,
        )
    return None


def moment_of(error: BaseException) -> Moment:
    """What a run was doing when `error` was raised, by the functions that it passed through."""
    passed = {frame.f_code.co_qualname for frame, _ in traceback.walk_tb(error.__traceback__)}
    return next((moment for moment, functions in MOMENTS if functions & passed), "training")


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
        """Save and stop, if a signal came, to whichever process of the run."""
        self._interruption.signal_number = largest(self._interruption.signal_number or 0, args.device) or None
        if self._interruption.signal_number is not None:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """There are no more steps."""
        self._interruption.in_step = False


def _is_out_of_memory(error: BaseException) -> bool:
    # On a CPU torch raises a RuntimeError that only its text tells from others.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _is_disk_full(error: BaseException) -> bool:
    """Whether `error`, or what caused it, is a full disk: an OSError, or safetensors' or torch's own words for it."""
    chain = (error, error.__cause__, error.__context__)
    return any(
        (isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
        or any(words in str(one) for words in ("No space left on device", "os error 28"))
        for one in chain
        if one is not None
    )
