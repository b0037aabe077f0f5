"""Bytes of the optimizer: states, which stay, and what one step needs for a moment."""

from functools import lru_cache

from planner.memory.parameters import Split, trainable_itemsize, trainable_split, trainable_weights
from planner.memory.tape import rounded
from planner.step.step_spec import Adapter, StepSpec
from profiles.architecture import Architecture
from profiles.optimizer import FLOAT32_BYTES, find_optimizer


def state_bytes(architecture: Architecture, step: StepSpec) -> int:
    """Bytes of all states in the card's own memory. They appear in the first step and stay.

    States of paged optimizers live in managed memory, which the driver moves to the host when the card is full.
    """
    return _state_bytes(architecture, step.adapter, step.optimizer, state_itemsize(step), state_split(step))


def master_bytes(architecture: Architecture, step: StepSpec) -> int:
    """Bytes of one card's share of the float32 copies that DeepSpeed trains in place of the weights, float32 ones too.

    Source: DeepSpeed 0.19 `runtime/zero/stage_1_and_2.py` single_partition_of_fp32_groups, `stage3.py`
    fp32_partitioned_groups_flat.
    """
    if step.sharding is None or not step.sharding.is_deepspeed:
        return 0
    learns = trainable_weights(architecture, step.adapter, state_split(step))
    return sum(weights.num_bytes(FLOAT32_BYTES) for weights in learns)


def state_itemsize(step: StepSpec) -> int:
    """Bytes of an element of what the optimizer works on: DeepSpeed's copies are float32."""
    return FLOAT32_BYTES if step.sharding and step.sharding.is_deepspeed else trainable_itemsize(step)


def state_split(step: StepSpec) -> Split:
    """How the optimizer's work is split."""
    return trainable_split(step, step.sharding.state_shards if step.sharding else 1)


def step_scratch_bytes(architecture: Architecture, step: StepSpec) -> int:
    """Bytes that exist only while the optimizer works: for the foreach loop one copy of all that learns."""
    return _scratch_bytes(architecture, step.adapter, step.optimizer, state_itemsize(step), state_split(step))


@lru_cache(maxsize=1024)
def _state_bytes(
    architecture: Architecture, adapter: Adapter | None, optimizer: str, itemsize: int, split: Split
) -> int:
    profile = find_optimizer(optimizer)
    return sum(
        weights.count
        * sum(map(rounded, profile.state_sizes(weights.shape, itemsize, embedding=weights.kind == "embedding")))
        for weights in trainable_weights(architecture, adapter, split)
        if not profile.is_paged(weights.elements)
    )


@lru_cache(maxsize=1024)
def _scratch_bytes(
    architecture: Architecture, adapter: Adapter | None, optimizer: str, itemsize: int, split: Split
) -> int:
    learns = trainable_weights(architecture, adapter, split)
    elements = [weights.elements for weights in learns for _ in range(weights.count)]
    return find_optimizer(optimizer).scratch_bytes(elements, itemsize)
