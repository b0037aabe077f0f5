"""One training step, fully resolved: everything that memory and speed depend on, and nothing else."""

from dataclasses import dataclass
from typing import Literal

from planner.config.run_config import Dtype, Objective, Offload, Quantization, Strategy

AttentionKernel = Literal["eager", "math", "efficient", "flash"]
"""eager is Transformers' own code; math, efficient and flash are the kernels of torch's fused attention."""

StepLoss = Literal["full", "full_inplace", "chunked", "fused", "liger", "odds_ratio", "score"]
"""full: all logits, then cross entropy; full_inplace: the gradient is written over the logits; chunked: 256 rows at a
time, recomputed; fused: TRL's tiles of tokens x vocabulary; liger: Liger's fused linear cross entropy; odds_ratio: all
logits, of which ORPO takes two losses; score: a reward head, one number a token."""

Reference = Literal["none", "adapter_off", "copy"]
"""Where a frozen reference answers in the step: nowhere (also if it was asked before), the base below the adapter, or a
second copy of the weights."""

Kernels = Literal["torch", "foak"]
"""What norms, rotary positions and adapters of quantized layers are made of: operators of torch, or the fused kernels
of fms-acceleration."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as the step sees it. `dtype` is that of the weights that learn; `targets` are names of Linear modules.

    LoRA is described by `r`, `targets`, `dropout` and `use_dora`, as far as its cost goes. Anything else of PEFT is in
    `options`: all that PEFT was told, by name and sorted, each value as JSON so that a step can be a key; `r`,
    `targets` and `dropout` then say nothing (0 and none).
    """

    r: int
    targets: tuple[str, ...]
    dropout: float
    dtype: Dtype
    use_dora: bool = False
    peft_type: str = "LORA"
    options: tuple[tuple[str, str], ...] | None = None


ShardingEngine = Strategy | Literal["fsdp1", "fsdp1_no_shard"]
"""The strategies of a run file, and the first FSDP of torch, with which others measured, also where each card keeps
all weights."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """How the cards of a run share one step; the figures of a step are those of one card.

    `num_gpus` is the cards of a machine, `num_nodes` the machines. A group of `tensor_parallel_size` x
    `context_parallel_size` cards works on the same rows. `offload` is what stays in host memory. With
    `replicates_adapter` each card keeps the whole adapter, as fms-acceleration's fused kernels need it.
    """

    engine: ShardingEngine
    num_gpus: int
    num_nodes: int = 1
    offload: Offload = "none"
    reshard_after_forward: bool = True
    tensor_parallel_size: int = 1
    context_parallel_size: int = 1
    replicates_adapter: bool = False

    @property
    def world_size(self) -> int:
        """Cards of the run."""
        return self.num_gpus * self.num_nodes

    @property
    def data_parallel_size(self) -> int:
        """Groups of cards with rows of their own."""
        return self.world_size // (self.tensor_parallel_size * self.context_parallel_size)

    @property
    def num_shards(self) -> int:
        """Cards that share out what tensor parallelism leaves on each: all with other rows or another part of a row."""
        return self.world_size // self.tensor_parallel_size

    @property
    def weight_shards(self) -> int:
        """Into how many parts the weights are split."""
        return self.num_shards if self.engine in ("fsdp", "fsdp1", "zero3") else 1

    @property
    def gradient_shards(self) -> int:
        """Into how many parts the gradients are split, once they are reduced."""
        return self.num_shards if self.engine in ("fsdp", "fsdp1", "zero2", "zero3") else 1

    @property
    def state_shards(self) -> int:
        """Into how many parts the optimizer states are split."""
        return 1 if self.engine in ("ddp", "fsdp1_no_shard") else self.num_shards

    @property
    def weights_on_host(self) -> bool:
        """Whether the shares of the weights wait in host memory."""
        return self.offload == "parameters"

    @property
    def states_on_host(self) -> bool:
        """Whether the optimizer works in host memory."""
        return self.offload != "none"

    @property
    def gradients_on_host(self) -> bool:
        """Whether reduced gradients go to host memory; ZeRO-1 keeps all of them on each card."""
        return self.offload != "none" and self.gradient_shards > 1

    @property
    def is_fsdp1(self) -> bool:
        """Whether torch's first FSDP runs the step."""
        return self.engine in ("fsdp1", "fsdp1_no_shard")

    @property
    def is_deepspeed(self) -> bool:
        """Whether DeepSpeed runs the step."""
        return self.engine in ("zero1", "zero2", "zero3")


@dataclass(frozen=True, slots=True)
class StepSpec:
    """One training step.

    `micro_batch` counts rows that pass the model at once: two for each preference pair. `seq_len` is tokens a row, and
    `target_len` tokens a row of the decoder where an encoder reads the prompt, else None. Objectives with a
    `reference`, and kto for its divergence, pass the rows more often, without gradients.

    `weight_dtype` is the dtype of what is not quantized, as loaded; with `kbit_upcast` those weights are float32 in the
    step, with `float32_norms` the weights of norms are. `autocast` is the dtype of the autocast region, None outside
    one. `masked` batches need an attention mask of (batch, 1, seq_len, seq_len); `expand_kv` repeats keys and values to
    all query heads before the kernel runs. `upcast_logits` and `shift_logits` say whether the loss makes a float32 copy
    and a shifted copy of the logits, which depends on the version of Transformers; with `upcast_in_model` the copy is
    made before the loss is called, which lets the 16-bit logits go. `output_alive` is true where the caller keeps the
    logits through the backward pass. `gradients_persist` is true with gradient accumulation: gradients of earlier
    micro-batches are there in the forward pass. `experts_quantized` is true where each expert is a Linear module, as in
    Transformers before 5. `sharding` is None on one card.
    """

    micro_batch: int
    seq_len: int
    weight_dtype: Dtype
    adapter: Adapter | None = None
    quantization: Quantization | None = None
    double_quant: bool = False
    kbit_upcast: bool = False
    float32_norms: bool = False
    autocast: Dtype | None = None
    attention: AttentionKernel = "flash"
    expand_kv: bool = False
    masked: bool = False
    loss: StepLoss = "full"
    upcast_logits: bool = True
    upcast_in_model: bool = False
    shift_logits: bool = False
    output_alive: bool = False
    checkpointing: bool = True
    checkpoint_every: int = 1
    checkpoint_offload: bool = False
    optimizer: str = "adamw_torch_fused"
    gradients_persist: bool = False
    experts_quantized: bool = False
    eval_batch: int | None = None
    objective: Objective = "sft"
    reference: Reference = "none"
    target_len: int | None = None
    kernels: Kernels = "torch"
    sharding: Sharding | None = None
    device: Literal["cuda", "cpu"] = "cuda"

    @property
    def num_tokens(self) -> int:
        """Tokens of one micro-batch."""
        return self.micro_batch * self.seq_len

    @property
    def base_dtype(self) -> Dtype:
        """Dtype in which embeddings, norms and head are held."""
        return "float32" if self.kbit_upcast else self.weight_dtype

    @property
    def gradients_stay(self) -> bool:
        """Whether memory of reduced gradients is there all the time: with accumulation, and with ZeRO-3, which has one
        buffer for them (DeepSpeed 0.19 `stage3.py` grad_partitions_flat_buffer).
        """
        return self.gradients_persist or (self.sharding is not None and self.sharding.engine == "zero3")

    @property
    def weight_shards(self) -> int:
        """Into how many parts the weights are split; 1 on one card."""
        return self.sharding.weight_shards if self.sharding else 1

    @property
    def compute_dtype(self) -> Dtype:
        """Dtype of the matrix products."""
        return self.autocast or self.weight_dtype
