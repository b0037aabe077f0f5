"""What sharing a step among cards changes: which share a card keeps, and what an engine holds beside it while it works.

A *unit* is what an engine gathers at once: one layer, the embedding, or final norm and head.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from planner.config.run_config import DTYPE_BYTES
from planner.memory.parameters import (
    Weights,
    adapter_bytes,
    adapter_matrices,
    base_weight_bytes,
    block_weights,
    gradient_bytes,
    packed_kinds,
    packed_layer_bytes,
    quantized_weight_bytes,
    split_of,
    trainable_itemsize,
    trainable_weights,
)
from planner.memory.states import master_bytes, state_bytes, state_split
from planner.memory.tape import rounded
from planner.step.step_spec import Sharding, StepSpec
from profiles.architecture import Architecture, Block
from profiles.optimizer import FLOAT32_BYTES

LIVE_PARAMETERS = 1_000_000_000
"""Parameters that ZeRO-3 keeps gathered for their next use: `stage3_max_live_parameters` and
`stage3_max_reuse_distance`, by default (DeepSpeed `runtime/zero/config.py`)."""

UPDATED_AT_ONCE = 1_000_000_000
"""Parameters whose gradients ZeRO-3 makes float32 at once: `sub_group_size`, by default."""


@lru_cache(maxsize=4096)
def at_work(step: StepSpec) -> StepSpec:
    """The step as the layers of one card see it: weights in the dtype they are gathered in, and its part of each row.

    Source: torch MixedPrecision and MixedPrecisionPolicy with `param_dtype`, which accelerate sets to the dtype of
    mixed precision (1.15 `utils/dataclasses.py` set_mixed_precision).
    """
    sharding = step.sharding
    if sharding is None:
        return step
    step = replace(step, sharding=None, seq_len=-(-step.seq_len // sharding.context_parallel_size))
    if sharding.weight_shards == 1 or step.autocast is None:
        return step
    adapter = step.adapter and replace(step.adapter, dtype=step.autocast)
    return replace(step, weight_dtype=step.autocast, adapter=adapter, kbit_upcast=False, float32_norms=False)


@lru_cache(maxsize=4096)
def as_shared(step: StepSpec) -> StepSpec:
    """`step` without its rows, their loss and what attention makes of them.

    Shares of weights, gradients and states do not depend on these, so equal ones are counted once.
    """
    return replace(
        step,
        micro_batch=1,
        seq_len=1,
        target_len=None,
        eval_batch=None,
        attention="flash",
        expand_kv=False,
        masked=False,
        loss="full",
        objective="sft",
        reference="none",
        checkpoint_every=1,
        checkpoint_offload=False,
        gradients_persist=False,
    )


@dataclass(frozen=True, slots=True)
class Engine:
    """How one card of several goes through a step; sizes in bytes.

    `embedding` and `tail` are the gathered units of the two ends. `kept_share` is the part of a reduced gradient that
    stays on the card. All is nothing on one card. Where both ends share their weights (`tied`), FSDP2 has them in one
    unit from the start to the end, with their gradient.
    """

    sharding: Sharding | None = None
    embedding: int = 0
    tail: int = 0
    reusable: int = 0
    kept_share: float = 1.0
    retains_inputs: bool = False
    prefetches: bool = True
    tied: bool = False

    def in_forward(self, unit: int, before: int) -> int:
        """Gathered weights in the forward pass of a layer of `unit` bytes, behind layers of `before` bytes.

        FSDP1 gathers its root, with both ends, at the start and keeps it to the end of the backward pass, and one layer
        at a time (torch 2.4 and 2.13 `_runtime_utils.py` _post_forward_reshard). FSDP2 holds the buffer of an
        all-gather until the next one, so a unit is there twice (2.13 `_fsdp_param_group.py` wait_for_unshard). ZeRO-3
        keeps what is used again soon.
        """
        match self._gathers:
            case "fsdp1":
                return self.embedding + self.tail + unit
            case "fsdp":
                return 2 * unit + self._ends + (0 if self._reshards else before)
            case "zero3":
                return min(self.embedding + before + unit, self.reusable + unit)
        return 0

    def before_forward(self, unit: int, before: int) -> int:
        """Gathered weights just before a layer's forward pass.

        While FSDP2 copies a unit out of its buffer, that of the unit before is still there, in a local variable of
        wait_for_unshard (torch 2.13; found in traces).
        """
        return self.in_forward(unit, before) + (unit if self._gathers == "fsdp" else 0)

    def in_loss(self, layers: int, last: int, forward: bool, apart: bool = False) -> int:
        """Gathered weights at the loss; `layers` are the bytes of all layers, `last` those of the last one.

        FSDP2 lets the buffer of the last all-gather go at the end of the model's forward pass, behind the loss
        (torch 2.13 `_fsdp_state.py` _post_forward). It is the last layer's where the head comes `apart`: below an
        adapter accelerate finds no final norm for its unit, and TRL's fused loss gathers its weight as a tensor
        (accelerate 1.15 _find_final_norm, TRL 1.16 `_fused_forward`).
        """
        match self._gathers:
            case "fsdp1":
                return self.embedding + self.tail
            case "fsdp":
                buffer = (last if self.tied or apart else self.tail) if forward else 0
                return self.tail + buffer + (0 if self._reshards else layers + self.embedding)
            case "zero3":
                return min(layers + self.tail, self.reusable + self.tail)
        return 0

    def ahead_of_loss(self, unit: int) -> int:
        """Weights of the last layer, `unit` bytes, that are gathered before the backward pass of the loss.

        FSDP2 begins at the model's output (torch 2.13 `_fsdp_state.py` _pre_backward). Where the loss is computed from
        the last norm's output and the head's weight, that is the loss itself. Found in traces.
        """
        return unit if self._gathers == "fsdp" and self._reshards else 0

    def in_backward(self, unit: int, to_come: int, reduced: int) -> int:
        """Gathered weights in the backward pass of a layer, with `to_come` bytes of layers behind it.

        The next unit is gathered already, and the input of the last reduction, `reduced` bytes, is still there
        (torch 2.13 `_fsdp_param_group.py` _backward_prefetch and post_backward; FSDP1: BACKWARD_PRE). Behind the first
        layer FSDP2 finds the embedding, also a frozen one.
        """
        ahead = min(unit, to_come) if self.prefetches else 0
        if self._gathers == "fsdp" and not to_come:
            ahead = self.embedding
        match self._gathers:
            case "fsdp1":
                return self.embedding + self.tail + unit + ahead
            case "fsdp":
                return unit + self._ends + (ahead if self._reshards else to_come) + reduced
            case "zero3":
                return min(to_come + unit, self.reusable + unit)
        return 0

    def at_embedding(self, reduced: int) -> int:
        """Gathered weights at the end of the backward pass."""
        match self._gathers:
            case "fsdp1":
                return self.embedding + self.tail
            case "fsdp":
                return (self.tail if self.tied else self.embedding) + reduced
            case "zero3":
                return self.embedding or self.tail
        return 0

    def kept(self, gradients: int, *, of_tail: bool = False) -> int:
        """Bytes that a card keeps of `gradients` once they are reduced; those of a tied tail are so at the end only."""
        waits = of_tail and self.tied and self._gathers == "fsdp"
        return gradients if waits else round(gradients * self.kept_share)

    @property
    def _gathers(self) -> str | None:
        return self.sharding.engine if self.sharding and self.sharding.weight_shards > 1 else None

    @property
    def _ends(self) -> int:
        """What FSDP2 keeps of the two ends while layers are at work."""
        return self.tail if self.tied else 0 if self._reshards else self.embedding

    @property
    def _reshards(self) -> bool:
        return self.sharding is not None and self.sharding.reshard_after_forward


@lru_cache(maxsize=4096)
def engine_of(architecture: Architecture, step: StepSpec) -> Engine:
    """The engine that runs `step`.

    Beside what is gathered, FSDP1 keeps the inputs of frozen layers that are checkpointed by the reentrant code, and
    their gradients, to the end of the backward pass: the hook that gives a frozen layer's weights back is tied to the
    accumulation node of that input, and it lives that long (torch 2.4 and 2.13 `_runtime_utils.py`
    _register_post_backward_reshard_only_hook; `checkpoint.py` CheckpointFunction). Found on the rows of two harnesses,
    whose peaks grow by just so many bytes a row.

    FSDP1 gathers ahead the unit before in the order of the forward pass. Where each matrix of an adapter is a unit,
    that is one of the same layer (PEFT 0.13 `utils/other.py` fsdp_auto_wrap_policy; torch `_exec_order_utils.py`).
    """
    sharding = step.sharding
    if sharding is None:
        return Engine()
    size = DTYPE_BYTES[at_work(step).base_dtype]
    tables = sum(rounded(table.num_parameters * size) for table in architecture.embeddings)
    tail = sum(rounded(norm.num_parameters * size) for norm in architecture.final_norms)
    if not architecture.tied:
        tail += rounded(architecture.head.num_parameters * size)
    else:  # accelerate 1.15 fsdp2_prepare_model: a shared table is in the unit of final norm and head
        tables, tail = 0, tail + tables
    kept, whole = gradient_bytes(architecture, step), gradient_bytes(architecture, at_work(step))
    return Engine(
        sharding=sharding,
        embedding=tables,
        tail=tail,
        reusable=LIVE_PARAMETERS * size,
        tied=architecture.tied,
        # Where a reference answers below the adapter, nothing learns.
        kept_share=0.0 if sharding.gradients_on_host or not whole else kept / whole,
        retains_inputs=sharding.is_fsdp1 and step.adapter is not None and step.checkpointing,
        prefetches=not (sharding.is_fsdp1 and step.adapter and not sharding.replicates_adapter),
    )


@dataclass(frozen=True, slots=True)
class LayerUnit:
    """Bytes of the weights of one layer as they are gathered, and of its gradients as they are reduced."""

    gathered: int = 0
    reduced: int = 0


@lru_cache(maxsize=4096)
def layer_unit(block: Block, architecture: Architecture, step: StepSpec) -> LayerUnit:
    """One layer of `block`, adapters included; nothing if each card has all weights."""
    if step.weight_shards == 1:
        return LayerUnit()
    worked, packed = at_work(step), packed_kinds(step)
    size = DTYPE_BYTES[worked.base_dtype]
    base = packed_layer_bytes(block, architecture, step) + sum(
        _gathered_bytes(weights, size, step)
        for weights in block_weights(block, architecture)
        if weights.elements and weights.kind not in packed
    )
    adapter = worked.adapter
    if adapter is None:
        return LayerUnit(base, base)
    if step.sharding and step.sharding.replicates_adapter:
        return LayerUnit(base, 0)
    matrices = (matrix for linear in block.linears for matrix in adapter_matrices(linear, adapter))
    learns = sum(_gathered_bytes(matrix, DTYPE_BYTES[adapter.dtype], step) for matrix in matrices)
    return LayerUnit(base + learns, learns)


def _gathered_bytes(weights: Weights, itemsize: int, step: StepSpec) -> int:
    """Bytes of a weight once it is gathered. FSDP2 pads the rows to a multiple of the cards, which makes an adapter of
    few rows, or a stack of few experts, many times its size on many cards (torch 2.13 `_fsdp_param.py`
    _init_sharded_param: the padded first chunk is that of all).
    """
    split = split_of(step, step.weight_shards)
    padded = weights.share(split).elements * split.parts if split.by_rows else weights.elements
    return weights.count * rounded(padded * itemsize)


@lru_cache(maxsize=4096)
def bucket_bytes(architecture: Architecture, step: StepSpec) -> int:
    """Bytes of the buffers in which gradients travel.

    DDP has a copy of all gradients in buckets, because nobody asks it to make the gradients views of them (torch 2.13
    `reducer.cpp` initialize_buckets; accelerate 1.15 DistributedDataParallelKwargs). ZeRO has buckets of a fixed size:
    in stages 1 and 2 one to fill and one to reduce, as `overlap_comm` asks, and one in stage 3 (DeepSpeed
    `stage_1_and_2.py` backward_prologue, `stage3.py` __ipg_bucket). It is the square of the hidden size, which
    Transformers puts for `auto` (5.23 `integrations/deepspeed.py` trainer_config_finalize).
    """
    if step.sharding is None:
        return 0
    if step.sharding.engine == "ddp":
        return gradient_bytes(architecture, step)
    if step.sharding.is_deepspeed:
        buckets = 1 if step.sharding.engine == "zero3" else 2
        return buckets * rounded(architecture.embeddings[0].columns ** 2 * trainable_itemsize(step))
    return 0


@lru_cache(maxsize=4096)
def float32_gradient_bytes(architecture: Architecture, step: StepSpec) -> int:
    """Bytes of the float32 gradients that DeepSpeed makes for the step of a card's share; on the host with offload.

    Source: `stage_1_and_2.py` step (one flat tensor), `stage3.py` _prepare_sub_group.
    """
    sharding = step.sharding
    if sharding is None or not sharding.is_deepspeed or sharding.states_on_host:
        return 0
    learns = sum(w.count * w.elements for w in trainable_weights(architecture, step.adapter, state_split(step)))
    return FLOAT32_BYTES * (min(learns, UPDATED_AT_ONCE) if sharding.engine == "zero3" else learns)


@lru_cache(maxsize=4096)
def host_bytes(architecture: Architecture, step: StepSpec) -> int:
    """Bytes of host memory that the processes of one machine need for weights and states, at the worse of two moments.

    While loading, under FSDP one process of a machine reads the whole model (Transformers 5.23
    `integrations/fsdp.py` is_fsdp_enabled, accelerate `cpu_ram_efficient_loading`), or each process all of its 4-bit
    weights, which the efficient way leaves out (accelerate 1.15 fsdp2_prepare_model). In training, what is offloaded.
    What Python and the libraries take is not counted. Unmeasured.
    """
    sharding = step.sharding
    if sharding is None:
        return 0
    alone = replace(step, sharding=None)
    whole = base_weight_bytes(architecture, alone) + quantized_weight_bytes(architecture, alone)
    loading = 0
    if sharding.engine == "fsdp":
        loading = whole * (sharding.num_gpus if step.quantization else 1)
    offloaded = 0
    on_card = replace(step, sharding=replace(sharding, offload="none"))
    if sharding.weights_on_host:
        offloaded += base_weight_bytes(architecture, step) + adapter_bytes(architecture, step)
        offloaded += quantized_weight_bytes(architecture, on_card) - quantized_weight_bytes(architecture, step)
    if sharding.gradients_on_host:
        offloaded += gradient_bytes(architecture, step)
    if sharding.states_on_host:
        offloaded += state_bytes(architecture, step) + master_bytes(architecture, step)
    return max(loading, offloaded * sharding.num_gpus)
