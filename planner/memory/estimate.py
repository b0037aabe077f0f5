"""The memory of one training step: named components, the peak of each phase, and what the process holds."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from planner.config.run_config import DTYPE_BYTES
from planner.memory.parameters import (
    adapter_bytes,
    base_weight_bytes,
    gradient_bytes,
    quantized_weight_bytes,
    trainable_itemsize,
    trainable_weights,
)
from planner.memory.reserved import Cached, Phase, process_memory, reserved_bytes
from planner.memory.sharding import as_shared, at_work, bucket_bytes, float32_gradient_bytes, host_bytes
from planner.memory.states import master_bytes, state_bytes, step_scratch_bytes
from planner.memory.timeline import Peak, Timeline, evaluation_peak, layer_groups, timeline
from planner.memory.workspace import batch_bytes, position_bytes, workspace_bytes
from planner.step.network import network
from planner.step.step_spec import Adapter, StepSpec
from planner.units import format_bytes, format_count
from profiles.architecture import Architecture
from profiles.errors import UnsupportedError
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile


@dataclass(frozen=True, slots=True)
class Component:
    """Something that is alive at the peak: its bytes and the arithmetic behind them."""

    name: str
    bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What one step needs on one GPU, in bytes.

    `phases` maps each phase to its peak of allocated memory, `binding_phase` is the largest. `reserved_bytes` is what
    torch's caching allocator takes for that, `process_bytes` what nvidia-smi shows. `interval_bytes` is where the
    process memory of a measured run is expected. `activation_bytes` are what the allocator hands out and takes back in
    a step. `learned_bytes` of the process are no part of the formulas: earlier runs took so much more, or less.
    `explain` tells what is alive at the peak of a phase; a trace only knows that of the largest.
    """

    phases: dict[Phase, int]
    binding_phase: Phase
    allocated_bytes: int
    reserved_bytes: int
    process_bytes: int
    interval_bytes: tuple[int, int]
    explain: Callable[[Phase], tuple[Component, ...]] = field(repr=False, compare=False)
    activation_bytes: int = 0
    learned_bytes: int = 0
    host_bytes: int = 0

    @property
    def components(self) -> tuple[Component, ...]:
        """What is alive in the binding phase; it adds up to `allocated_bytes`. Written when it is asked for."""
        return self.explain(self.binding_phase)

    def scaled(self, factor: float) -> "MemoryEstimate":
        """The same with `factor` on what the process holds, as runs were found to differ from the formulas."""
        if factor == 1:
            return self
        process = round(self.process_bytes * factor)
        low, high = self.interval_bytes
        return replace(
            self,
            process_bytes=process,
            interval_bytes=(round(low * factor), round(high * factor)),
            learned_bytes=self.learned_bytes + process - self.process_bytes,
        )


def estimate(model: ModelProfile, step: StepSpec, gpu: GpuProfile | None) -> MemoryEstimate:
    """The memory of `step` on `gpu` (None: a CPU, where nothing but live tensors counts).

    Raises UnsupportedError for an architecture or an adapter that is not described and ConfigError for an unknown
    optimizer.
    The measured error is in `calibration/ERRORS.md`.
    """
    _refuse_undescribed(step.adapter)
    arch = network(model, step.objective, step.sharding.tensor_parallel_size if step.sharding else 1)
    static = _static(arch, step, gpu)
    always = sum(static.values())
    activity = timeline(arch, step)
    moments = _moments(arch, step, activity)
    phases = {phase: always + sum(parts.values()) for phase, (parts, _) in moments.items()}
    loading = {name: static[name] for name in LOADED} | {"tensor that is being loaded": _largest_tensor(arch, step)}
    phases["load"] = sum(loading.values())
    binding = max(phases, key=lambda phase: phases[phase])
    activations = max(peak.bytes - peak.gradients for _, peak in moments.values() if peak)

    def explain(phase: Phase) -> tuple[Component, ...]:
        parts, peak = moments.get(phase, ({}, None))
        return _components(loading if phase == "load" else static | parts, arch, step, peak)

    reserved = reserved_bytes(phases, _cached(activity, step, activations))
    process = process_memory(phases[binding], reserved, activations, step, gpu)
    return MemoryEstimate(
        phases=phases,
        binding_phase=binding,
        allocated_bytes=phases[binding],
        reserved_bytes=process.reserved_bytes,
        process_bytes=process.process_bytes,
        interval_bytes=process.interval_bytes,
        activation_bytes=activations,
        host_bytes=host_bytes(arch, as_shared(step)),
        explain=explain,
    )


def _cached(activity: Timeline, step: StepSpec, activations: int) -> Cached:
    loss = max(activity.loss_forward.working, activity.loss_backward.working) if step.checkpointing else 0
    return Cached(activity.transients, loss, activations)


def _refuse_undescribed(adapter: Adapter | None) -> None:
    """Raise UnsupportedError for an adapter that costs something else than LoRA."""
    if adapter is None or (adapter.options is None and not adapter.use_dora):
        return
    name = adapter.peft_type if adapter.peft_type != "LORA" else "DoRA" if adapter.use_dora else "these options of it"
    raise UnsupportedError(
        f"the closed form describes the memory of LoRA, but not of {name}",
        hint="`fitune estimate --exact` traces the step itself",
    )


def _components(sizes: dict[str, int], arch: Architecture, step: StepSpec, peak: Peak | None) -> tuple[Component, ...]:
    return tuple(Component(name, size, _why(name, arch, step, peak)) for name, size in sizes.items() if size)


LOADED = ("weights", "quantized weights", "reference weights")


def _static(arch: Architecture, step: StepSpec, gpu: GpuProfile | None) -> dict[str, int]:
    """Bytes that are there in every phase of a step."""
    weights_here = not (step.sharding and step.sharding.weights_on_host)
    states_here = not (step.sharding and step.sharding.states_on_host)
    return {
        "weights": base_weight_bytes(arch, step) * weights_here,
        "quantized weights": quantized_weight_bytes(arch, step),
        "reference weights": base_weight_bytes(arch, step) if step.reference == "copy" else 0,
        "adapter": adapter_bytes(arch, step) * weights_here,
        "float32 copies": master_bytes(arch, step) * states_here,
        "optimizer states": state_bytes(arch, step) * states_here,
        "earlier gradients": _kept_gradients(arch, step) if step.gradients_stay else 0,
        "gradient buckets": bucket_bytes(arch, as_shared(step)),
        "batch": batch_bytes(arch, at_work(step)),
        "cuBLAS workspaces": workspace_bytes(gpu),
    }


def _kept_gradients(arch: Architecture, step: StepSpec) -> int:
    """Bytes of the reduced gradients that stay on the card."""
    return 0 if step.sharding and step.sharding.gradients_on_host else gradient_bytes(arch, step)


def _moments(arch: Architecture, step: StepSpec, activity: Timeline) -> dict[Phase, tuple[dict[str, int], Peak | None]]:
    """For each phase the bytes above the static ones at its peak, by name, and that peak."""
    positions = position_bytes(arch, at_work(step))
    loss = max(activity.loss_forward, activity.loss_backward, key=lambda peak: peak.bytes)
    moments: dict[Phase, tuple[dict[str, int], Peak | None]] = {
        "forward": (_parts(activity.forward, positions), activity.forward),
        "loss": (_parts(loss, positions), loss),
        "backward": (_parts(activity.backward, positions), activity.backward),
        "step": (_optimizer_parts(arch, step), None),
    }
    if activity.reference:
        moments["reference"] = (_parts(activity.reference, positions), activity.reference)
    if step.eval_batch:
        of_evaluation = replace(step, micro_batch=step.eval_batch)
        evaluation = evaluation_peak(arch, of_evaluation)
        moments["evaluation"] = (_parts(evaluation, position_bytes(arch, at_work(of_evaluation))), evaluation)
    return moments


def _parts(peak: Peak, positions: int) -> dict[str, int]:
    return {
        "masks and positions": positions,
        "stored activations": peak.stored,
        f"{peak.place} at work": peak.working,
        "gradients": peak.gradients,
        "weight copies of autocast": peak.copies,
        "gathered weights": peak.gathered,
    }


def _optimizer_parts(arch: Architecture, step: StepSpec) -> dict[str, int]:
    """Bytes that the optimizer's step has beside what is always there.

    ZeRO-1 lets go of gradients that are updated elsewhere (DeepSpeed 0.19 `stage_1_and_2.py` free_grad_in_param_list).
    """
    gradients = 0 if step.gradients_stay else _kept_gradients(arch, step)
    if step.sharding and step.sharding.engine == "zero1":
        gradients = -(-gradients // step.sharding.num_shards)
    on_host = step.sharding is not None and step.sharding.states_on_host
    return {
        "gradients": gradients,
        "optimizer scratch": 0 if on_host else step_scratch_bytes(arch, step),
        "float32 gradients": float32_gradient_bytes(arch, as_shared(step)),
    }


def _largest_tensor(arch: Architecture, step: StepSpec) -> int:
    """Bytes of the largest weight as loaded: while it is quantized, both forms are there.

    Shares of packed weights come from host memory, where all were packed.
    """
    if step.quantization is None or (step.sharding and step.sharding.engine == "fsdp"):
        return 0
    return max(linear.num_weights for linear, _ in arch.linears()) * DTYPE_BYTES[step.weight_dtype]


def _why(name: str, arch: Architecture, step: StepSpec, peak: Peak | None) -> str:
    """The arithmetic behind a component, in numbers."""
    learns = sum(weights.count * weights.elements for weights in trainable_weights(arch, step.adapter))
    itemsize = trainable_itemsize(step)
    tokens = f"{step.micro_batch} x {step.seq_len} tokens"
    texts = {
        "weights": f"what is not quantized, in {step.base_dtype}",
        "quantized weights": f"{step.quantization} Linear layers with their block constants",
        "reference weights": f"a frozen copy in {step.base_dtype}",
        "adapter": f"{format_count(learns)} parameters x {itemsize} B",
        "optimizer states": f"{step.optimizer}, {format_count(learns)} parameters",
        "earlier gradients": f"{format_count(learns)} parameters x {itemsize} B, kept between micro-batches",
        "gradients": f"gradients of weights, {itemsize} B a parameter that learns",
        "optimizer scratch": f"temporary copies of {step.optimizer}",
        "batch": f"token ids, labels and masks of {tokens}, and buffers",
        "masks and positions": "masks of attention and rotary tables",
        "cuBLAS workspaces": "two, for the forward and the backward thread",
        "stored activations": _stored_why(arch, step, tokens),
        "weight copies of autocast": f"{step.autocast} copies of float32 weights",
        "gathered weights": "whole layers, gathered to work on, and buffers of the transfers",
        "gradient buckets": "buffers in which gradients travel between cards",
        "float32 copies": f"{format_count(learns)} parameters x 4 B, which DeepSpeed trains, shared among cards",
        "float32 gradients": "gradients as DeepSpeed's optimizer reads them",
    }
    return texts.get(name) or (_working_why(peak) if peak else "")


def _stored_why(arch: Architecture, step: StepSpec, tokens: str) -> str:
    if not step.checkpointing:
        return f"what autograd keeps of {arch.num_layers} layers x {tokens}"
    width = arch.head.in_features
    # Behind the first layer the residual stream is as wide as the layers make it.
    *_, last = layer_groups(arch, step)
    checkpoints = f"{arch.num_layers} layers x {tokens} x {width} x {last.memory.output_itemsize} B"
    return (
        checkpoints
        if step.checkpoint_every == 1
        else f"{checkpoints}; of every {step.checkpoint_every}th the input only"
    )


def _working_why(peak: Peak) -> str:
    largest = sorted(peak.moment.tensors, key=lambda tensor: (-tensor.bytes, tensor.name))[:3]
    tensors = ", ".join(f"{tensor.name} {format_bytes(tensor.bytes)}" for tensor in largest)
    return f"peaks at {peak.moment.op}" + (f", with {tensors}" if tensors else "")
