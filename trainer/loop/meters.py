"""What a run takes, measured while it trains: memory and speed."""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import pynvml
import torch
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.loop.live_bytes import LiveBytes

# The peak repeats with each step; two steps see it with the optimizer's states there. Counting makes them slower.
COUNTED_STEPS = 2


class MemoryMeter(Protocol):
    """A callback that knows the peak memory of the run so far, in bytes; None is what the machine cannot tell."""

    phases: dict[str, int]

    @property
    def now_bytes(self) -> int | None:
        """Live tensors at this moment."""

    @property
    def allocated_bytes(self) -> int | None:
        """Peak of live tensors."""

    @property
    def reserved_bytes(self) -> int | None:
        """Peak that torch's allocator held."""

    @property
    def process_bytes(self) -> int | None:
        """Peak that the driver reported for this process."""

    def open(self) -> None:
        """Measure what follows, until `close`."""

    def close(self) -> None:
        """Measure no more, also where a step was cut short."""

    def in_optimizer(self) -> AbstractContextManager[None]:
        """What happens inside is the optimizer's."""


class CpuMemory(TrainerCallback):  # type: ignore[misc]
    """Counts the live tensors of the probe and of the first steps."""

    now_bytes = None
    reserved_bytes = None
    process_bytes = None

    def __init__(self) -> None:
        self._live = LiveBytes()
        self._counted_steps = 0
        self._counting = False
        self._counted = False

    @property
    def phases(self) -> dict[str, int]:
        """Peak of live tensors by phase of the step."""
        return {str(phase): peak for phase, peak in self._live.peaks.items()}

    @property
    def allocated_bytes(self) -> int | None:
        """Peak of live tensors; None before anything but the weights was counted."""
        return self._live.peak if self._counted else None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module,
        optimizer: Optimizer,
        **_: object,
    ) -> None:
        """Count the weights, and the states that a resumed run begins with."""
        states = [value for group in optimizer.state.values() for value in group.values()]
        self._live.watch([*model.parameters(), *model.buffers()], "load")
        self._live.watch([value for value in states if isinstance(value, torch.Tensor)], "step")

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Count from here on, in the first steps."""
        if self._counted_steps < COUNTED_STEPS:
            self.open()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """What follows is the optimizer's."""
        self._live.phase = "step"

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """The optimizer is done."""
        self._live.phase = "forward"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Count no longer."""
        if self._counting:
            self._counted_steps += 1
        self.close()

    @contextmanager
    def in_optimizer(self) -> Iterator[None]:
        """What happens inside is the optimizer's."""
        self._live.phase = "step"
        try:
            yield
        finally:
            self._live.phase = "forward"

    def open(self) -> None:
        """Count from here on."""
        self._live.__enter__()
        self._counting = self._counted = True

    def close(self) -> None:
        """Count no longer, also where a step was cut short."""
        if self._counting:
            self._live.__exit__(None, None, None)
            self._counting = False


class CudaMemory(TrainerCallback):  # type: ignore[misc]
    """Reads torch's own count and the driver's."""

    def __init__(self, device: torch.device) -> None:
        self.phases: dict[str, int] = {}
        self.process_bytes: int | None = None
        self._device = device

    @property
    def now_bytes(self) -> int | None:
        """Live tensors at this moment."""
        return int(torch.cuda.memory_allocated(self._device))

    @property
    def allocated_bytes(self) -> int | None:
        """Peak of live tensors."""
        return int(torch.cuda.max_memory_allocated(self._device))

    @property
    def reserved_bytes(self) -> int | None:
        """Peak that torch's allocator held."""
        return int(torch.cuda.max_memory_reserved(self._device))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Forget what loading took; it is over."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        self.phases["load"] = torch.cuda.memory_allocated(self._device)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Ask the driver, in the first steps; later ones take no more."""
        if state.global_step <= COUNTED_STEPS or self.process_bytes is None:
            self._ask_driver()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Ask the driver again, at times when a moment does not matter."""
        self._ask_driver()

    def open(self) -> None:
        """Torch counts all the time."""

    def close(self) -> None:
        """What the probe took is there to see now."""
        self._ask_driver()

    def in_optimizer(self) -> AbstractContextManager[None]:
        """Torch tells no phases apart."""
        return nullcontext()

    def _ask_driver(self) -> None:
        used = process_memory(self._device)
        if used is not None:
            self.process_bytes = max(used, self.process_bytes or 0)


def process_memory(device: torch.device) -> int | None:
    """Bytes that the driver counts for this process on `device`; None if it does not tell."""
    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByUUID(uuid))
    except pynvml.NVMLError:
        return None
    # In a container the driver may know the process by another number; alone on the card, it is still this one.
    own = [p for p in processes if p.pid == os.getpid()] or (processes if len(processes) == 1 else [])
    return own[0].usedGpuMemory if own else None


class StepClock(TrainerCallback):  # type: ignore[misc]
    """Times the steps, without evaluation, checkpoints and the pass over the longest batch."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps: list[tuple[int, float]] = []
        self._began = 0.0
        self._tokens_before = 0

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens through the model, padding included, once the first steps are over; None before any step."""
        # Counting and first-time work make the first steps slower than the rest.
        steps = self._steps[COUNTED_STEPS:] or self._steps
        seconds = sum(seconds for _, seconds in steps)
        return sum(tokens for tokens, _ in steps) / seconds if seconds else None

    @property
    def tokens_per_step(self) -> float | None:
        """Mean of the tokens of a step, once the first steps are over; None before any step."""
        steps = self._steps[COUNTED_STEPS:] or self._steps
        return sum(tokens for tokens, _ in steps) / len(steps) if steps else None

    @property
    def seconds_per_step(self) -> float | None:
        """Mean duration of a step, once the first steps are over; None before any step."""
        steps = self._steps[COUNTED_STEPS:] or self._steps
        return sum(seconds for _, seconds in steps) / len(steps) if steps else None

    @property
    def seconds(self) -> float:
        """Sum of all steps."""
        return sum(seconds for _, seconds in self._steps)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Start the watch."""
        self._tokens_before = int(state.num_input_tokens_seen)
        self._began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Stop the watch, when the card is done too."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        tokens = int(state.num_input_tokens_seen) - self._tokens_before
        self._steps.append((tokens, time.perf_counter() - self._began))
