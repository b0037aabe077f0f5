"""The peak of memory in each phase of a training step, on a card or on a CPU."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from calibration.allocator.stream import Phase
from calibration.measuring.measurement import PhasePeak
from trainer.loop.live_bytes import LiveBytes
from trainer.loop.meters import process_memory


class Counter(Protocol):
    """Tells the peak since it was last asked."""

    @property
    def process_bytes(self) -> int | None:
        """The most that the driver counted for this process; None where it does not tell."""

    def begin(self, model: torch.nn.Module) -> None:
        """Count from here on; the model is there."""

    def take(self) -> PhasePeak:
        """The peak since the last call, which begins anew from what is held now."""

    def ask_driver(self) -> None:
        """Note what the process holds now, as far as a driver tells."""

    def end(self) -> None:
        """Count no longer."""


class CudaCounter:
    """Torch's own count of a card, and the driver's."""

    def __init__(self, device: torch.device) -> None:
        self.process_bytes: int | None = None
        self._device = device

    def begin(self, model: torch.nn.Module) -> None:
        """Forget what building took, and give its cache back, as `trainer.loop.meters.CudaMemory` does."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def take(self) -> PhasePeak:
        """The peak since the last call."""
        peak = PhasePeak(
            allocated_bytes=torch.cuda.max_memory_allocated(self._device),
            reserved_bytes=torch.cuda.max_memory_reserved(self._device),
        )
        torch.cuda.reset_peak_memory_stats(self._device)
        return peak

    def ask_driver(self) -> None:
        """Ask what the driver counts for this process."""
        used = process_memory(self._device)
        if used is not None:
            self.process_bytes = max(used, self.process_bytes or 0)

    def end(self) -> None:
        """Nothing is open."""


class CpuCounter:
    """Live tensors, counted one by one."""

    process_bytes = None

    def __init__(self) -> None:
        self._live = LiveBytes()
        self._counts = False

    def begin(self, model: torch.nn.Module) -> None:
        """Count the weights, and all that is made from here on."""
        self._live.watch([*model.parameters(), *model.buffers()], "load")
        self._live.__enter__()
        self._counts = True

    def take(self) -> PhasePeak:
        """The peak since the last call."""
        peak = max(self._live.peak, self._live.now)
        self._live.peaks.clear()
        return PhasePeak(allocated_bytes=peak)

    def ask_driver(self) -> None:
        """There is none."""

    def end(self) -> None:
        """Count no longer."""
        if self._counts:
            self._live.__exit__(None, None, None)
            self._counts = False


class PhasePeaks(TrainerCallback):  # type: ignore[misc]
    """Follows a trainer from phase to phase and keeps the peak of each."""

    def __init__(self, trainer: Trainer, counter: Counter) -> None:
        self.phase: Phase = "load"
        self.peaks: dict[Phase, PhasePeak] = {}
        self._counter = counter
        self._trainer = trainer
        trainer.compute_loss = self._followed(trainer.compute_loss, self._after_forward)
        trainer.training_step = self._followed(trainer.training_step, self._after_backward)

    def enter(self, phase: Phase) -> None:
        """One phase ends here, and `phase` begins."""
        peak, before = self._counter.take(), self.peaks.get(self.phase)
        self.peaks[self.phase] = _larger(peak, before) if before else peak
        self.phase = phase

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: torch.nn.Module, **_: object
    ) -> None:
        """The model is loaded."""
        self._counter.begin(model)
        self.enter("forward")

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """The optimizer works next."""
        self.enter("step")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """The next forward pass."""
        self._counter.ask_driver()
        self.enter("forward")

    def _after_forward(self) -> None:
        if self.phase == "forward":
            self.enter("backward")

    def _after_backward(self) -> None:
        # Gradients are clipped before the optimizer says that it begins.
        self.enter("step" if self._trainer.accelerator.sync_gradients else "forward")

    @staticmethod
    def _followed(function: Callable[..., Any], after: Callable[[], None]) -> Callable[..., Any]:
        def followed(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - the trainer's own
            result = function(*args, **options)
            after()
            return result

        return followed


def _larger(one: PhasePeak, other: PhasePeak) -> PhasePeak:
    reserved = [peak.reserved_bytes for peak in (one, other) if peak.reserved_bytes is not None]
    return PhasePeak(
        allocated_bytes=max(one.allocated_bytes, other.allocated_bytes),
        reserved_bytes=max(reserved, default=None),
    )
