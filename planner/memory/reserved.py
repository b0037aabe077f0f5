"""From allocated memory to what the process takes from the card: the allocator's slack and the CUDA context."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from planner.step.step_spec import StepSpec
from planner.units import MIB
from profiles.fitted import AttentionKind, fitted
from profiles.gpu import GpuProfile
from profiles.overheads import overheads
from profiles.residuals import Residuals, residuals
from profiles.slack import simulated_slack

Phase = Literal["load", "forward", "loss", "reference", "backward", "step", "evaluation"]


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Bytes that torch reserves, that the process holds, and the range in which a measurement of it is expected."""

    reserved_bytes: int
    process_bytes: int
    interval_bytes: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Cached:
    """Bytes whose blocks the allocator may hold beside a peak.

    `transients` are what the forward pass of one layer makes beyond its input, `loss` what the loss has at work where
    layers are checkpointed (else 0: then layers store nothing in its blocks), `activations` all that is no gradient.
    """

    transients: int
    loss: int
    activations: int


def reserved_bytes(phases: Mapping[Phase, int], cached: Cached) -> int:
    """What torch's allocator takes from the card: the largest of the phases, each with what is cached beside it.

    While the loss peaks, the transients of a layer lie in blocks too small for logits. With checkpoints the blocks of
    the loss are cut up by what the layers store. Where the optimizer has the peak, blocks of activations lie idle.
    Source of the shares and their error: `profiles/slack.toml`, and for the optimizer `profiles/fitted.toml`.
    """
    slack = simulated_slack()
    cut = slack.cut * cached.loss
    steps = max(phases, key=lambda phase: phases[phase]) == "step"
    beside: dict[Phase, float] = {
        "forward": cut,
        "loss": slack.transients * cached.transients + slack.cut_at_loss * cached.loss,
        "backward": cut,
        "step": fitted().slack_share("step") * cached.activations * steps,
    }
    return max(size + round(beside.get(phase, 0)) for phase, size in phases.items())


def process_memory(
    allocated_bytes: int,
    reserved_bytes: int,
    activation_bytes: int,
    step: StepSpec,
    gpu: GpuProfile | None,
    spreads: Residuals | None = None,
) -> ProcessMemory:
    """reserved + context.

    The range reaches as far up as measured runs lay above that (`spreads`).

    The low end is what no allocator can go below, the tensors alone: when the card is full, torch gives back cached
    blocks and tries again, and a replay of steps at their limit comes within 1 to 5 % of the activations of it. On a
    CPU torch has no caching allocator, so all figures are the allocated bytes.
    Source and spread: `profiles/fitted.toml` (slack), `overheads.toml` (context) and `residuals.toml` (range) there.
    """
    if gpu is None:
        return ProcessMemory(allocated_bytes, allocated_bytes, (allocated_bytes, allocated_bytes))
    above = (spreads or residuals()).highest(gpu, method_of_step(step), attention_kind(step))
    high = reserved_bytes + round(above * activation_bytes)
    context = context_bytes(step, gpu)
    return ProcessMemory(reserved_bytes, reserved_bytes + context, (allocated_bytes + context, high + context))


def context_bytes(step: StepSpec, gpu: GpuProfile) -> int:
    """Bytes that a process holds beside torch's allocator: the CUDA context, and NCCL's buffers between cards."""
    return gpu.context_bytes + (overheads().context.nccl_mib * MIB if step.sharding else 0)


def attention_kind(step: StepSpec) -> AttentionKind:
    """Whether the scores of attention are materialized."""
    return "eager" if step.attention in ("eager", "math") else "fused"


def method_of_step(step: StepSpec) -> str:
    """The method as runs were measured by it: full, lora, qlora or peft."""
    if step.adapter is None:
        return "full"
    if step.adapter.peft_type != "LORA":
        return "peft"
    return "qlora" if step.quantization else "lora"
