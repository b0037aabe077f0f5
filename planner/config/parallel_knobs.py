"""The section of a run file that says how several cards share one run."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from planner.config.knob_sections import Knobs

Strategy = Literal["ddp", "fsdp", "zero1", "zero2", "zero3"]
Offload = Literal["none", "optimizer", "parameters"]

OFFLOADS: dict[Strategy, tuple[Offload, ...]] = {
    "ddp": ("none",),
    "fsdp": ("none", "parameters"),
    "zero1": ("none", "optimizer"),
    "zero2": ("none", "optimizer"),
    "zero3": ("none", "optimizer", "parameters"),
}
"""What each engine can keep in host memory. FSDP2's CPUOffloadPolicy moves shards, gradients and optimizer states as
one (torch 2.13 `_fsdp_api.py`); DeepSpeed offloads parameters in stage 3 only (`runtime/zero/config.py`)."""

OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "sgd")
"""Optimizers that work on shards: those of torch. bitsandbytes 0.50 hands the addresses of plain tensors to its
kernels, and FSDP2's weights are DTensors; DeepSpeed refuses what it was not tested with
(`runtime/zero/utils.py` is_zero_supported_optimizer)."""

HOST_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch")
"""Those for which DeepSpeed has an optimizer in host memory: its CPU Adam."""

PARTITIONS_WEIGHTS: frozenset[Strategy] = frozenset({"fsdp", "zero3"})
"""Strategies under which no card holds the whole model."""


class ParallelKnobs(Knobs):
    """How the cards of a run share its weights, gradients, optimizer states and tokens."""

    strategy: Strategy = Field(
        "ddp",
        description="ddp: each card holds all and the gradients are averaged; fsdp: FSDP2 of torch, each holds a share "
        "of weights, gradients and optimizer states; zero1, zero2, zero3: DeepSpeed, which shares out the optimizer "
        "states, then the gradients, then the weights as well.",
    )
    offload: Annotated[Offload, BeforeValidator(lambda given: "none" if given is None else given)] = Field(
        "none",
        description="What stays in host memory: the optimizer states, or with parameters the weights as well. "
        "fsdp moves both or none, zero1 and zero2 the optimizer only.",
    )
    reshard_after_forward: bool = Field(
        True, description="fsdp: give a layer's weights back after its forward pass; false keeps them for the backward."
    )
    tensor_parallel_size: PositiveInt = Field(
        1, description="fsdp: cards that split each matrix product; a group of neighbours in one machine."
    )
    context_parallel_size: PositiveInt = Field(1, description="fsdp: cards that split the tokens of a row.")

    @property
    def partitions_weights(self) -> bool:
        """Whether no card holds all weights."""
        return self.strategy in PARTITIONS_WEIGHTS

    @property
    def splits_work(self) -> bool:
        """Whether cards split matrix products, or the tokens of a row."""
        return self.tensor_parallel_size * self.context_parallel_size > 1

    @model_validator(mode="after")
    def _engine_can_do_it(self) -> Self:
        if self.offload not in OFFLOADS[self.strategy]:
            raise ValueError(
                f"offload is {self.offload}, which {self.strategy} cannot; use {' or '.join(OFFLOADS[self.strategy])}"
            )
        if self.strategy == "fsdp":
            return self
        if not self.reshard_after_forward:
            raise ValueError(f"reshard_after_forward is for fsdp, but strategy is {self.strategy}; leave it")
        for name in ("tensor_parallel_size", "context_parallel_size"):
            if getattr(self, name) > 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, which is built on fsdp, but strategy is "
                    f"{self.strategy}; use fsdp, or 1"
                )
        return self

    def check_cards(self, num_gpus: int, num_nodes: int) -> None:
        """Raise ValueError if so many cards do not divide into these groups."""
        tensor, context = self.tensor_parallel_size, self.context_parallel_size
        if num_gpus * num_nodes % (tensor * context):
            raise ValueError(
                f"parallel.tensor_parallel_size {tensor} x context_parallel_size {context} does not divide the "
                f"{num_gpus * num_nodes} cards; their product has to"
            )
        if num_gpus % tensor:
            raise ValueError(
                f"parallel.tensor_parallel_size is {tensor}, but a machine has {num_gpus} cards, and the matrix "
                "products of a group have to stay in one machine; use a divisor of it"
            )

    def check_row(self, max_length: int, attn_implementation: str, joins_rows: bool) -> None:
        """Raise ValueError if rows of this kind cannot be split among cards.

        Each card gets a chunk from the front and one from the back (torch 2.13, `_HeadTailLoadBalancer`).
        """
        parts = 2 * self.context_parallel_size
        if parts == 2:
            return
        if max_length % parts:
            raise ValueError(
                f"max_length is {max_length}, but with parallel.context_parallel_size {self.context_parallel_size} "
                f"it has to be a multiple of {parts}"
            )
        if attn_implementation != "sdpa" or joins_rows:
            raise ValueError(
                f"parallel.context_parallel_size is {self.context_parallel_size}, which takes sdpa attention of whole "
                "rows; set attn_implementation to sdpa, packing and padding_free to false"
            )

    def check_base(self, method: str, quantization: str | None, dtype: str, compute_dtype: str | None) -> None:
        """Raise ValueError if weights of this kind cannot be shared out; `compute_dtype` is that of autocast."""
        if self.tensor_parallel_size > 1 and method != "full":
            raise ValueError(
                f"parallel.tensor_parallel_size is {self.tensor_parallel_size}, but method is {method}; only full "
                "fine-tuning splits its matrix products, adapters take fsdp alone"
            )
        if self.strategy.startswith("zero") and dtype != "float32" and compute_dtype is None:
            raise ValueError(
                f"dtype is {dtype} and mixed_precision no, but DeepSpeed would make the weights float32; "
                f"set mixed_precision to {'fp16' if dtype == 'float16' else 'bf16'}"
            )
        if not self.partitions_weights or quantization is None:
            return
        if quantization == "int8":
            raise ValueError(f"quantization is int8, which {self.strategy} cannot share out; use nf4, or strategy ddp")
        if compute_dtype not in (None, dtype):
            raise ValueError(
                f"dtype is {dtype}, but {self.strategy} shares out 4-bit weights only if they are stored in the dtype "
                f"that mixed_precision computes in; set dtype to {compute_dtype}"
            )

    def check_optimizer(self, optim: str) -> None:
        """Raise ValueError if this optimizer of Transformers does not work on shards."""
        if self.strategy != "ddp" and optim not in OPTIMIZERS:
            raise ValueError(
                f"optim is {optim}, which does not work on what {self.strategy} shares out; "
                f"use one of {', '.join(OPTIMIZERS)}"
            )
        if self.strategy.startswith("zero") and self.offload != "none" and optim not in HOST_OPTIMIZERS:
            raise ValueError(
                f"optim is {optim}, but DeepSpeed's optimizer in host memory is Adam; use {HOST_OPTIMIZERS[0]}"
            )
