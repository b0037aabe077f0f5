"""Answers a `TraceQuestion` of the planner: JSON on stdin, a `TraceAnswer` as JSON on stdout."""

import contextlib
import re
import sys
from collections import defaultdict

from transformers import PreTrainedConfig

from calibration.allocator.caching import Settings
from calibration.allocator.loading import with_loading
from calibration.allocator.replay import process_bytes, replay, smallest_capacity
from calibration.allocator.stream import Allocation, Stream
from calibration.trace.model_config import transformers_config
from calibration.trace.step_trace import trace
from calibration.trace.undescribed import read_config, undescribed_network
from planner.config.run_config import RunConfig
from planner.memory.reserved import context_bytes
from planner.predict.traced import Alive, TraceAnswer, TraceQuestion
from planner.step.resolve import check_encoder_decoder, resolve_step, step_of_network
from planner.step.step_spec import StepSpec
from planner.units import format_bytes
from profiles.errors import FituneError, UnsupportedError
from profiles.gpu import GpuProfile
from profiles.trainer import traits_of
from trainer.model.adapter import first_line

RESERVED_ERROR = 0.08
"""How far a measurement of reserved memory may lie above a simulated one: `calibration/ERRORS.md`, 95th percentile."""

NAMED = 3
"""Tensors of a kind that are named, the largest first."""


def answer(question: TraceQuestion) -> TraceAnswer:
    """Trace the run in `question` and replay it on the allocator. Raises FituneError for what cannot be traced."""
    gpu = question.gpu
    step, stream = traced(question)
    if gpu is None:
        return _on_cpu(stream)
    loaded = with_loading(stream, step)
    # The launcher asks for expandable segments; other trainers take torch's default.
    settings = Settings(expandable_segments=traits_of(question.trainer).name == "fitune")
    return _on_gpu(loaded, settings, step, gpu)


def traced(question: TraceQuestion) -> tuple[StepSpec, Stream]:
    """The step of the run in `question`, and its stream.

    Raises FituneError: what a library says against it, of whatever class, is said to the user.
    """
    model_type = question.model.model_type if question.model else "model"
    try:
        architecture, step = traced_step(question)
        model_type = architecture.model_type
        workspace_bytes = question.gpu.cublas_workspace_bytes if question.gpu else 0
        return step, trace(architecture, step, workspace_bytes=workspace_bytes)
    except FituneError:
        raise
    except Exception as error:
        raise UnsupportedError(
            f"the step of a {model_type} cannot be traced: {type(error).__name__}: {first_line(error)}",
            hint=_way_out(question.config, first_line(error)),
        ) from error


def _way_out(config: RunConfig, why: str) -> str | None:
    # Checkpoints need gradients of what embeddings return, into which some models then write.
    if ("does not support" in why and "checkpointing" in why) or "leaf Variable that requires grad" in why:
        return "keep what all layers save: --set gradient_checkpointing=false"
    # TRL's fused loss runs its own code in place of the model's, which not every model suits.
    return "the model's own loss may do: --set loss=full" if config.loss == "fused" else None


def traced_step(question: TraceQuestion) -> tuple[PreTrainedConfig, StepSpec]:
    """The model's configuration and the step of the run."""
    if question.model is not None:
        step = resolve_step(question.config, question.model, question.gpu, question.trainer)
        return transformers_config(question.model), step
    assert question.folder is not None
    architecture = read_config(question.folder)
    traits = traits_of(question.trainer)
    if architecture.is_encoder_decoder and traits.loss == "config":
        check_encoder_decoder(question.config, question.config.model)
    network = undescribed_network(architecture, question.config)
    step = step_of_network(question.config, network, architecture.is_encoder_decoder, question.gpu, traits)
    return architecture, step


def _on_cpu(stream: Stream) -> TraceAnswer:
    phases = stream.peaks()
    binding = max(phases, key=lambda phase: phases[phase])
    peak = phases[binding]
    return TraceAnswer(
        phases=phases,
        binding_phase=binding,
        reserved_bytes=peak,
        process_bytes=peak,
        interval_bytes=(peak, peak),
        alive=_kinds(stream.alive_at_peak(binding)),
    )


def _on_gpu(loaded: Stream, settings: Settings, step: StepSpec, gpu: GpuProfile) -> TraceAnswer:
    """The least that can work is what the allocator can live with when it gives back all that it caches."""
    replayed = replay(loaded, settings)
    phases = {phase: peak.allocated for phase, peak in replayed.phases.items()}
    process = process_bytes(replayed, step, gpu)
    lowest = smallest_capacity(loaded, settings) + context_bytes(step, gpu)
    binding = max(phases, key=lambda phase: phases[phase])
    return TraceAnswer(
        phases=phases,
        binding_phase=binding,
        reserved_bytes=replayed.peak.reserved,
        process_bytes=process,
        interval_bytes=(lowest, round(process * (1 + RESERVED_ERROR))),
        alive=_kinds(loaded.alive_at_peak(binding)),
    )


def _kinds(alive: list[Allocation]) -> tuple[Alive, ...]:
    """What is alive, by kind, the largest first."""
    kinds: dict[str, list[Allocation]] = defaultdict(list)
    for allocation in alive:
        kinds[allocation.kind].append(allocation)
    found = [Alive(kind=kind, bytes=sum(one.bytes for one in group), why=_why(group)) for kind, group in kinds.items()]
    return tuple(sorted(found, key=lambda one: -one.bytes))


def _why(group: list[Allocation]) -> str:
    """The largest tensors of a group, those of all layers as one."""
    alike: dict[str, list[int]] = defaultdict(list)
    for allocation in group:
        alike[_words(allocation)].append(allocation.bytes)
    largest = sorted(alike.items(), key=lambda item: -sum(item[1]))
    named = [f"{words} {_sizes(sizes)}" for words, sizes in largest[:NAMED]]
    rest = len(largest) - NAMED
    return ", ".join(named) + (f", and {rest} more" if rest > 0 else "")


def _words(allocation: Allocation) -> str:
    """A weight by its name, anything else by its operator and the module that ran it; any layer is `*`."""
    name, module = (_short(text) for text in (allocation.name, allocation.module))
    return name if not module or name.startswith(module) else f"{name} of {module}"


def _short(path: str) -> str:
    """A path without what PEFT puts around a model, and without the number of the layer."""
    for wrapper in ("base_model.model.", ".base_layer", ".default"):
        path = path.replace(wrapper, "")
    return re.sub(r"\.\d+(?=\.|$)", ".*", path)


def _sizes(sizes: list[int]) -> str:
    return format_bytes(sizes[0]) if len(sizes) == 1 else f"{len(sizes)} x {format_bytes(sum(sizes) // len(sizes))}"


def main() -> None:
    """Answer the question on stdin."""
    question = TraceQuestion.model_validate_json(sys.stdin.read())
    try:
        # Whatever a library prints is no answer.
        with contextlib.redirect_stdout(sys.stderr):
            found = answer(question)
    except FituneError as error:
        found = TraceAnswer(error=error.message, hint=error.hint)
    sys.stdout.write(found.model_dump_json())


if __name__ == "__main__":
    main()
