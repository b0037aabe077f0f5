"""Bytes of the optimizer: states, which stay, and what one step needs for a moment."""

from functools import lru_cache

from planner.memory.parameters import trainable_itemsize, trainable_weights
from planner.memory.tape import rounded
from planner.step import Adapter, StepSpec
from profiles.architecture import Architecture
from profiles.optimizer import find_optimizer


def state_bytes(architecture: Architecture, step: StepSpec) -> int:
    """Bytes of all states in the card's own memory. They appear in the first step and stay.

    States of paged optimizers live in managed memory, which the driver moves to the host when the card is full.
    """
    return _state_bytes(architecture, step.adapter, step.optimizer, trainable_itemsize(step))


def step_scratch_bytes(architecture: Architecture, step: StepSpec) -> int:
    """Bytes that exist only while the optimizer works: for the foreach loop one copy of all that learns."""
    return _scratch_bytes(architecture, step.adapter, step.optimizer, trainable_itemsize(step))


@lru_cache(maxsize=1024)
def _state_bytes(architecture: Architecture, adapter: Adapter | None, optimizer: str, itemsize: int) -> int:
    profile = find_optimizer(optimizer)
    return sum(
        weights.count
        * sum(map(rounded, profile.state_sizes(weights.shape, itemsize, embedding=weights.kind == "embedding")))
        for weights in trainable_weights(architecture, adapter)
        if not profile.is_paged(weights.elements)
    )


@lru_cache(maxsize=1024)
def _scratch_bytes(architecture: Architecture, adapter: Adapter | None, optimizer: str, itemsize: int) -> int:
    elements = [weights.elements for weights in trainable_weights(architecture, adapter) for _ in range(weights.count)]
    return find_optimizer(optimizer).scratch_bytes(elements, itemsize)
