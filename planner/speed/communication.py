"""What the cards of a run send each other in one step, and how long that takes.

A collective of `size` bytes among n cards moves (n - 1) / n of them over each link, an all-reduce twice that (NCCL's
rings; nccl-tests `doc/PERFORMANCE.md`). Where a group reaches over several machines, the slower of the links sets the
pace.
"""

from dataclasses import dataclass

from planner.config.run_config import DTYPE_BYTES
from planner.memory.parameters import adapter_bytes, base_weight_bytes, gradient_bytes, quantized_weight_bytes
from planner.memory.sharding import at_work
from planner.memory.states import state_itemsize
from planner.step.network import network
from planner.step.step_spec import Sharding, StepSpec
from profiles.interconnect import Links
from profiles.model import ModelProfile

ADAM_PASSES = 7
"""Tensors that an Adam step in host memory moves: weight, gradient and two states, and three of them back."""


@dataclass(frozen=True, slots=True)
class Communication:
    """Seconds on the links: what hides behind the work of one micro-batch, what does not, and what comes once a step.

    `last_overlapped` hides behind the last micro-batch of a step only.
    """

    overlapped: float = 0.0
    exposed: float = 0.0
    last_overlapped: float = 0.0
    per_step: float = 0.0


def communicate(model: ModelProfile, step: StepSpec, links: Links) -> Communication:
    """The communication of `step`; nothing on one card."""
    sharding = step.sharding
    if sharding is None:
        return Communication()
    arch, alone = network(model, step.objective, sharding.tensor_parallel_size), at_work(step)
    weights = base_weight_bytes(arch, alone) + quantized_weight_bytes(arch, alone) + adapter_bytes(arch, alone)
    gradients = gradient_bytes(arch, alone)
    once = _one_way(sharding, sharding.num_shards, links)
    split = _split_products(step, sharding, links, arch.num_layers, arch.head.in_features)
    offloaded = _offloaded(step, sharding, links, weights, gradients)
    match sharding.engine:
        case "ddp" | "zero1" | "fsdp1_no_shard":
            # What has learned goes back to all, in the dtype of its gradients.
            updated = once * gradients if sharding.engine == "zero1" else 0.0
            return Communication(0.0, split, 2 * once * gradients, updated + offloaded.per_step)
        case "zero2":
            return Communication(once * gradients, split, 0.0, once * gradients + offloaded.per_step)
    gathers = _gathers(step, sharding)
    moved = once * (gathers * weights + gradients)
    # The first unit of each pass is waited for.
    first = once * gathers * weights / max(1, arch.num_layers)
    return Communication(moved + offloaded.overlapped, split + first, 0.0, offloaded.per_step)


def _gathers(step: StepSpec, sharding: Sharding) -> int:
    """How often all weights are gathered in a micro-batch.

    FSDP1 gives a layer back between its recomputation and its backward pass, where FSDP2 knows that both belong
    together (torch 2.13 `_fsdp_state.py` _pre_forward).
    """
    if sharding.is_fsdp1 and step.checkpointing:
        return 3
    return 2 if sharding.engine == "zero3" or sharding.reshard_after_forward else 1


def _one_way(sharding: Sharding, cards: int, links: Links) -> float:
    """Seconds a byte of a collective among `cards` takes."""
    if cards == 1:
        return 0.0
    rate = min(links.cards, links.machines) if sharding.num_nodes > 1 else links.cards
    return (cards - 1) / cards / rate


def _split_products(step: StepSpec, sharding: Sharding, links: Links, num_layers: int, width: int) -> float:
    """Seconds of what nothing hides: sums of split products, and keys and values of split rows.

    Two sums a layer forward and two backward, and the forward ones again with checkpointing (Megatron-LM,
    arXiv:1909.08053). Rows: keys and values of each layer are gathered, forward, again, and backward.
    """
    passes = 3 if step.checkpointing else 2
    stream = at_work(step).num_tokens * width * DTYPE_BYTES[step.compute_dtype]
    tensor, context = sharding.tensor_parallel_size, sharding.context_parallel_size
    sums = passes * 2 * num_layers * stream * 2 * (tensor - 1) / tensor / links.cards
    rate = links.cards if tensor * context <= sharding.num_gpus else min(links.cards, links.machines)
    rows = passes * num_layers * 2 * stream * (context - 1) / rate
    return sums + rows


def _offloaded(step: StepSpec, sharding: Sharding, links: Links, weights: int, gradients: int) -> Communication:
    """Traffic with host memory: shares of weights for each pass, gradients to the optimizer, and its own work there."""
    if sharding.offload == "none":
        return Communication()
    share = weights / sharding.weight_shards if sharding.weights_on_host else 0.0
    travels = 2 * share + gradients / sharding.gradient_shards
    learns = gradients / DTYPE_BYTES[at_work(step).compute_dtype] / sharding.state_shards
    updates = learns * sharding.num_gpus * ADAM_PASSES * state_itemsize(step) / links.host_memory
    return Communication(overlapped=travels / links.host, per_step=updates)
