"""The process that measures: trains each point that comes in on stdin for real, and answers with what it took.

A line of JSON is a `Point`, the answer is an `Attempt`. The end of memory is an answer; so is any other failure. After
each point everything is let go; the process ends by itself where something stays allocated, so that the next point
begins in a new one.
"""

import contextlib
import ctypes
import gc
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
import transformers
from transformers import Trainer

from calibration.measuring.contenders import contending_trainer
from calibration.measuring.measurement import Attempt, Point
from calibration.measuring.phase_peaks import Counter, CpuCounter, CudaCounter, PhasePeaks
from calibration.measuring.random_model import random_model
from calibration.trace.model_config import transformers_config
from planner.config.run_config import RunConfig
from planner.records.run_record import Measured
from profiles.errors import FituneError, OutOfMemory
from trainer.loop.meters import StepClock
from trainer.loop.probe import Example, longest_examples
from trainer.run import find_device, quiet_libraries
from trainer.run_folder.environment import environment
from trainer.supervisor.faults import Where, explain

PR_SET_PDEATHSIG = 1
"""Of prctl(2), linux/prctl.h."""


class Measuring:
    """One point under measurement; what is known of it so far stays readable where it fails."""

    def __init__(self, point: Point, device: torch.device) -> None:
        self._point = point
        self._device = device
        self._counter: Counter = CudaCounter(device) if device.type == "cuda" else CpuCounter()
        self._clock = StepClock(device)
        self._peaks: PhasePeaks | None = None
        self._load_seconds: float | None = None

    @property
    def phase(self) -> str:
        """What is being done."""
        return self._peaks.phase if self._peaks else "load"

    def run(self, folder: str) -> None:
        """Build the model, train for the steps of the run, and evaluate if the step does."""
        began = time.perf_counter()
        config = self._point.config.model_copy(update={"output_dir": folder})
        transformers.set_seed(config.seed)
        base = random_model(self._point.model, config, self._device)
        trainer = contending_trainer(self._point.trainer, config, base)
        trainer.args.save_strategy = "no"
        batches = LongestBatches(trainer, config, transformers_config(self._point.model).get_text_config().vocab_size)
        trainer.get_train_dataloader = lambda: batches
        self._peaks = PhasePeaks(trainer, self._counter)
        for callback in (self._clock, self._peaks):
            trainer.add_callback(callback)
        self._load_seconds = time.perf_counter() - began
        self._limit()
        trainer.train()
        if self._point.step.eval_batch:
            self._peaks.enter("evaluation")
            inputs = batches.batch(config.per_device_eval_batch_size)
            trainer.prediction_step(trainer.model, inputs, prediction_loss_only=True)
        self._peaks.enter(self._peaks.phase)

    def attempt(self, **outcome: Any) -> Attempt:  # noqa: ANN401 - fields of Attempt
        """What was measured, with the outcome."""
        return Attempt(
            measured=self._measured(),
            reserved_phases={p: peak.reserved_bytes for p, peak in self._found() if peak.reserved_bytes is not None},
            seconds_per_step=self._clock.seconds_per_step,
            load_seconds=self._load_seconds,
            environment=environment(self._device),
            **outcome,
        )

    def close(self) -> None:
        """Count no longer."""
        self._counter.end()

    def _limit(self) -> None:
        """Stop the allocator at the cap. Building is not part of what is measured: a launch loads weights otherwise."""
        if self._point.allocator_limit_bytes is not None:
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(self._device).total_memory
            torch.cuda.set_per_process_memory_fraction(
                min(1.0, self._point.allocator_limit_bytes / total), self._device
            )

    def _found(self) -> list[tuple[str, Any]]:
        return [*self._peaks.peaks.items()] if self._peaks else []

    def _measured(self) -> Measured | None:
        phases = {phase: peak.allocated_bytes for phase, peak in self._found()}
        reserved = [peak.reserved_bytes for _, peak in self._found() if peak.reserved_bytes is not None]
        if not phases:
            return None
        return Measured(
            allocated_bytes=max(phases.values()),
            reserved_bytes=max(reserved, default=None),
            process_bytes=self._counter.process_bytes,
            tokens_per_second=self._clock.tokens_per_second,
            tokens_per_step=self._clock.tokens_per_step,
            phases=phases,
        )


class LongestBatches:
    """Stands for the trainer's data loader: the longest batch of the run, of random tokens, again and again."""

    def __init__(self, trainer: Trainer, config: RunConfig, vocabulary: int) -> None:
        self.dataset = trainer.train_dataset
        self.batch_size = config.per_device_train_batch_size
        self._config = config
        self._collate = trainer.data_collator
        self._encodes = trainer.model.config.is_encoder_decoder
        self._vocabulary = vocabulary
        self._dice = random.Random(config.seed)  # noqa: S311

    def __len__(self) -> int:
        assert self._config.max_steps is not None
        return self._config.max_steps * self._config.gradient_accumulation_steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.batch(self.batch_size) for _ in range(len(self)))

    def batch(self, num_examples: int) -> dict[str, Any]:
        """A batch on the CPU. Tokens differ: one token everywhere would meet one expert and one row of a gradient."""
        longest = longest_examples(self._config, num_examples, self._encodes)
        batch: dict[str, Any] = self._collate([self._with_tokens(example) for example in longest])
        return batch

    def _with_tokens(self, example: Example) -> Example:
        return {
            name: self._dice.choices(range(self._vocabulary), k=len(value)) if name.endswith("ids") else value
            for name, value in example.items()
        }


def measure(point: Point) -> Attempt:
    """Train `point` here and say what it took; whatever it raises is told, too."""
    try:
        measuring = Measuring(point, find_device(point.config))
    except FituneError as error:
        return Attempt(outcome="failed", message=error.message)
    try:
        with quiet_libraries(), tempfile.TemporaryDirectory() as folder:
            measuring.run(folder)
        attempt = measuring.attempt(outcome="ran")
    except Exception as error:  # noqa: BLE001 - a failure is a result, and the next point may do
        attempt = measuring.attempt(ended_in=measuring.phase, **_outcome(error, point.config))
    finally:
        measuring.close()
    return attempt


def _outcome(error: Exception, config: RunConfig) -> dict[str, str]:
    """Whether memory ended or something else, and in which words and place."""
    explained = explain(error, config, Where(0, 0, None, Path()))
    outcome = "out of memory" if isinstance(explained, OutOfMemory) else "failed"
    first_line = next(iter(str(error).strip().splitlines()), "")
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}:{place.lineno}"
    return {"outcome": outcome, "message": f"{type(error).__name__} at {where}: {first_line}"}


def left_bytes() -> int:
    """Bytes that are still allocated on the card once everything was let go; 0 on a CPU."""
    gc.collect()
    if not torch.cuda.is_initialized():
        return 0
    # cuBLAS keeps its workspaces for the life of the process.
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_allocated())


def serve(questions: TextIO, answers: TextIO) -> None:
    """Measure each point that comes in, until there are no more or something stays allocated."""
    for line in questions:
        attempt = measure(Point.model_validate_json(line))
        left = left_bytes()
        answers.write(attempt.model_copy(update={"left_bytes": left}).model_dump_json() + "\n")
        answers.flush()
        if left:
            return


def end_with(parent: int) -> None:
    """Be killed when `parent`, the process that asks, is gone: to train on would spoil the next measurement."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    own_stdout = sys.stdout
    # Whatever a library prints is no answer.
    with contextlib.redirect_stdout(sys.stderr):
        serve(sys.stdin, own_stdout)
