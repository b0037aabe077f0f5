"""From allocated memory to what the process takes from the card: the allocator's slack and the CUDA context."""

from dataclasses import dataclass

from planner.step import StepSpec
from planner.units import MIB
from profiles.fitted import AttentionKind, fitted, slack_kind
from profiles.gpu import GpuProfile
from profiles.overheads import overheads
from profiles.residuals import Residuals, residuals


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Bytes that torch reserves, that the process holds, and the range in which a measurement of it is expected."""

    reserved_bytes: int
    process_bytes: int
    interval_bytes: tuple[int, int]


def process_memory(
    allocated_bytes: int,
    activation_bytes: int,
    at_optimizer_step: bool,
    step: StepSpec,
    gpu: GpuProfile | None,
    spreads: Residuals | None = None,
) -> ProcessMemory:
    """allocated + slack x activations + context, and buffers of NCCL where cards talk to each other.

    The range reaches as far up as measured runs lay above that (`spreads`).

    The low end is what no allocator can go below, the tensors alone: when the card is full, torch gives back cached
    blocks and tries again, and a replay of steps at their limit comes within 1 to 5 % of the activations of it. On a
    CPU torch has no caching allocator, so all figures are the allocated bytes.
    Source and spread: `profiles/fitted.toml` (slack), `overheads.toml` (context) and `residuals.toml` (range) there.
    """
    if gpu is None:
        return ProcessMemory(allocated_bytes, allocated_bytes, (allocated_bytes, allocated_bytes))
    kind = attention_kind(step)
    typical = fitted().slack_share(slack_kind(at_optimizer_step, kind))
    above = (spreads or residuals()).highest(gpu, method_of_step(step), kind)
    reserved, high = (allocated_bytes + round(share * activation_bytes) for share in (typical, typical + above))
    context = gpu.context_bytes + (overheads().context.nccl_mib * MIB if step.sharding else 0)
    return ProcessMemory(reserved, reserved + context, (allocated_bytes + context, high + context))


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
