"""From allocated memory to what the process takes from the card: the allocator's slack and the CUDA context."""

from dataclasses import dataclass

from planner.step import StepSpec
from planner.units import MIB
from profiles.gpu import GpuProfile
from profiles.overheads import overheads


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Bytes that torch reserves, that the process holds, and the range in which a measurement of it is expected."""

    reserved_bytes: int
    process_bytes: int
    interval_bytes: tuple[int, int]


def process_memory(
    allocated_bytes: int, activation_bytes: int, at_optimizer_step: bool, step: StepSpec, gpu: GpuProfile | None
) -> ProcessMemory:
    """allocated + slack x activations + context, and buffers of NCCL where cards talk to each other.

    The low end is the least that can work: when the card is full, the allocator gives back cached blocks and tries
    again. On a CPU torch has no caching allocator, so all figures are the allocated bytes.
    Source and spread: `profiles/overheads.toml`, [slack] and [context].
    """
    if gpu is None:
        return ProcessMemory(allocated_bytes, allocated_bytes, (allocated_bytes, allocated_bytes))
    slack = overheads().slack
    typical = slack.idle if at_optimizer_step else slack.eager if step.attention in ("eager", "math") else slack.typical
    reserved, low, high = (
        allocated_bytes + round(share * activation_bytes) for share in (typical, slack.low, max(slack.high, typical))
    )
    context = gpu.context_bytes + (overheads().context.nccl_mib * MIB if step.sharding else 0)
    return ProcessMemory(reserved, reserved + context, (low + context, high + context))
