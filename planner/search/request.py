"""What the user asks for: a model, a card, and the knobs that are not to be touched."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isqrt
from typing import Any, Literal

from planner.config.run_config import Objective, RunConfig, split_batch
from planner.data.lengths import DataLengths
from planner.memory.verdict import usable_bytes
from planner.records.experience import NO_EXPERIENCE, Experience
from planner.step.cluster import ONE_CARD, Cluster
from profiles.errors import ConfigError
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile

RequestedMethod = Literal["auto", "full", "lora", "qlora", "peft"]

EFFECTIVE_BATCH_SIZE = 16
"""Rows of an optimizer step when nobody asks for another number: that of the QLoRA runs (arXiv:2305.14314)."""


@dataclass(frozen=True, slots=True)
class Request:
    """A question to the planner.

    `knobs` are the values that the user gave, named and nested as in a run file; none of them is ever changed.
    `model_name` is how the user calls the model, if not by its Hub id. `free_bytes` is the live free memory of card
    or machine, `experience` what earlier runs taught. `num_rows` are those of the data where the `lengths` are not
    known. Method auto means adapters on the least lossy base that fits; full fine-tuning is only planned when asked
    for, and qlora means 4 bits unless `knobs` say int8.
    """

    model: ModelProfile
    gpu: GpuProfile | None
    method: RequestedMethod = "auto"
    effective_batch_size: int = EFFECTIVE_BATCH_SIZE
    knobs: Mapping[str, Any] = field(default_factory=dict)
    lengths: DataLengths | None = None
    free_bytes: int | None = None
    model_name: str | None = None
    cluster: Cluster = ONE_CARD
    experience: Experience = NO_EXPERIENCE
    num_rows: int | None = None

    @property
    def loadable_name(self) -> str:
        """The Hub id or folder to load."""
        return loadable_name(self.model, self.model_name)

    @property
    def objective(self) -> Objective:
        """What the run learns; sft unless the user says otherwise."""
        objective: Objective = self.knobs.get("objective", "sft")
        return objective

    @property
    def usable_bytes(self) -> int:
        """Bytes that the training process may take."""
        return usable_bytes(self.gpu, self.free_bytes)

    def epochs(self, config: RunConfig) -> float:
        """Passes over the data of a run of unjoined rows; one where only the number of its steps is known."""
        if config.max_steps is None:
            return config.num_train_epochs
        rows = self.lengths.num_rows if self.lengths else self.num_rows
        return config.max_steps * config.effective_batch_size / rows if rows else 1.0

    def on(self, gpu: GpuProfile) -> "Request":
        """The same on another card, all of whose memory is free."""
        return replace(self, gpu=gpu, free_bytes=None)

    def batches(self) -> tuple[tuple[int, int], ...]:
        """Micro-batch of a card and accumulation steps that keep the effective batch size, the smallest first.

        Kto compares the answers of a micro-batch, so it has no batches of one. Raises ConfigError if the batch sizes
        that the user gave do not divide.
        """
        micro_batch = self.knobs.get("per_device_train_batch_size")
        accumulation = self.knobs.get("gradient_accumulation_steps")
        size = self.effective_batch_size // groups_of(self.cluster, self.knobs)
        if micro_batch and accumulation:
            return ((micro_batch, accumulation),)
        if micro_batch:
            return ((micro_batch, split_batch(size, micro_batch)),)
        if accumulation:
            return ((_micro_batch(size, accumulation), accumulation),)
        smallest = 2 if self.objective == "kto" and size > 1 else 1
        return tuple((micro, size // micro) for micro in _divisors(size) if micro >= smallest)


def groups_of(cluster: Cluster, knobs: Mapping[str, Any]) -> int:
    """Groups of cards with rows of their own, if `knobs` are pinned; those that split products or rows share theirs."""
    parallel = knobs.get("parallel") or {}
    split: int = parallel.get("tensor_parallel_size", 1) * parallel.get("context_parallel_size", 1)
    return max(1, cluster.world_size // split)


def loadable_name(model: ModelProfile, called: str | None) -> str:
    """The Hub id or folder with the weights and the tokenizer of `model`, if the user calls it `called`.

    Chat variants share the shape of their base, so the user's own word counts.
    """
    return called if called and "/" in called else model.hf_id


def _divisors(number: int) -> list[int]:
    """All of them, the smallest first."""
    small = [divisor for divisor in range(1, isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


def _micro_batch(effective_batch_size: int, accumulation: int) -> int:
    if effective_batch_size % accumulation:
        raise ConfigError(
            f"gradient_accumulation_steps is {accumulation}, but the batch size {effective_batch_size} is not a "
            "multiple of it",
            hint="leave it out, or choose a divisor",
        )
    return effective_batch_size // accumulation
