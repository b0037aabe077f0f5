"""Predictions for measured runs by tracing their steps and replaying them on the allocator, in several processes."""

import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch
from pydantic import ValidationError

from calibration.allocator.caching import Settings
from calibration.allocator.loading import with_loading
from calibration.allocator.replay import process_bytes, replay, replay_from_empty
from calibration.allocator.stream import Stream
from calibration.exact import RESERVED_ERROR
from calibration.trace.harness import TRAINER, Harness
from calibration.trace.model_config import transformers_config
from calibration.trace.step_trace import trace
from calibration.truth.loading_race import reserved_range
from calibration.truth.prediction import Prediction, Question, Refusal
from planner.memory.verdict import Verdict, usable_bytes
from planner.step.step_spec import StepSpec
from profiles.architecture_traits import traits_of_type
from profiles.errors import InputError, UnsupportedError
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile

PROCESSES = 2
"""More would each need the memory of a process that has imported torch, about 1 GB."""


def traced(model: ModelProfile, step: StepSpec, gpu: GpuProfile, harness: Harness = TRAINER) -> Prediction:
    """The trace of `step`, with the model loaded before it, on the allocator of a card without limit.

    Raises UnsupportedError for what Transformers, in the version that is installed, does not build.
    """
    _refuse_other_models(model, step)
    stream = trace(transformers_config(model), step, workspace_bytes=gpu.cublas_workspace_bytes, harness=harness)
    loaded = with_loading(stream, step, harness.weights)
    replayed = replay(loaded, Settings())
    process = process_bytes(replayed, step, gpu)
    reserved = replay_from_empty(loaded, Settings()) if harness.empties else replayed.peak.reserved
    raced = reserved_range(stream, step, harness) if harness.races and step.quantization else None
    return Prediction(replayed.peak.allocated, reserved, _verdict(loaded, process, gpu), raced)


def traced_each(
    questions: Mapping[str, tuple[Question, Harness]], processes: int = PROCESSES
) -> Iterator[tuple[str, Prediction | Refusal]]:
    """Each key of `questions` with its prediction, or why there is none, in the order in which they come."""
    pool = ProcessPoolExecutor(min(processes, len(questions)), get_context("spawn"), _settle)
    try:
        futures = {pool.submit(_answer, *question, harness): key for key, (question, harness) in questions.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _answer(model: ModelProfile, step: StepSpec, gpu: GpuProfile, harness: Harness) -> Prediction | Refusal:
    """The prediction, or a sentence about what Transformers, PEFT or the trainer refuses."""
    try:
        return traced(model, step, gpu, harness)
    except InputError as error:
        return error.message
    except ValidationError as error:
        return error.errors()[0]["msg"].removeprefix("Value error, ")
    except (RuntimeError, ValueError, TypeError) as error:
        # One step that a library refuses must not lose minutes of the others.
        return f"the step cannot be traced: {' '.join(str(error).split()).partition('. ')[0]}"


def _settle() -> None:
    """Prepare a process: one thread, and an end that the process which asks decides on."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _verdict(loaded: Stream, process: int, gpu: GpuProfile) -> Verdict:
    """Fits: the measured process would lie below what is usable even if it took more by the error of a simulation; no:
    memory ends even though the allocator gives back all that it caches.
    """
    usable = usable_bytes(gpu)
    if process * (1 + RESERVED_ERROR) <= usable:
        return "fits"
    stopped = replay(loaded, Settings(capacity=usable - gpu.context_bytes)).out_of_memory
    return "no" if stopped else "tight"


def _refuse_other_models(model: ModelProfile, step: StepSpec) -> None:
    if traits_of_type(model.model_type).remote:
        raise UnsupportedError(f"models of type {model.model_type}, whose code is not in Transformers, are not traced")
    if step.experts_quantized and step.quantization and model.num_experts:
        raise UnsupportedError(
            "quantized experts in Linear modules are not traced: Transformers 5 holds all of a layer in one tensor"
        )
