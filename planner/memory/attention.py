"""Attention on the tape: what each kernel keeps and what it needs while it runs.

Sources: Transformers 5.23 `integrations/sdpa_attention.py` and `eager_attention_forward`; torch 2.13
`aten/src/ATen/native/transformers/{sdp_utils.cpp,cuda/attention_backward.cu}`, `cuda/SoftMax.cu`
(`softmax_backward_cuda_out`), `SoftMax.cpp`.
"""

from dataclasses import dataclass

from planner.config.run_config import DTYPE_BYTES
from planner.memory.operators import FLOAT32, INDEX, ROW_STATISTICS, Operators
from planner.memory.tape import Op, Tensor, rounded
from planner.step.step_spec import StepSpec
from profiles.architecture import Attention, Block

FLASH_TILE_ROWS, FLASH_TILE_WIDTH = 128, 32
"""Rows and head widths are rounded up to these in the flash kernel's backward pass (`flash_api.cpp`, `mha_bwd`)."""


@dataclass(frozen=True, slots=True)
class SharedBiases:
    """Bytes of the position biases that the layers of a stack share, which its first layer makes.

    `own` are those by distance for attention within the stack, `gradient` is theirs where the table learns that they
    are looked up in, `buckets` are the rows of it, which autograd keeps for that. `zeros` stand for biases in
    cross-attention: each layer's autograd keeps them, and with checkpoints they have a gradient, which stays.
    Source: Transformers 5.23 `T5Attention`.
    """

    own: int = 0
    gradient: int = 0
    buckets: int = 0
    zeros: int = 0


def shared_biases(block: Block, step: StepSpec) -> SharedBiases:
    """The shared biases of a stack of `block`; none without relative positions."""
    attention = block.attention
    if attention.score_bias != "relative":
        return SharedBiases()
    size, learns = DTYPE_BYTES[step.base_dtype], step.adapter is None
    queries = (step.target_len or step.seq_len) if block.cross_attention else step.seq_len
    own = rounded(attention.num_heads * queries * queries * size)
    return SharedBiases(
        own=own,
        gradient=own * learns,
        buckets=rounded(queries * queries * INDEX) * learns,
        zeros=rounded(attention.num_heads * queries * step.seq_len * size) if block.cross_attention else 0,
    )


def attend(
    ops: Operators, attention: Attention, query: Tensor, key: Tensor, value: Tensor, dropout: bool = False
) -> Tensor:
    """The heads' output of shape (batch, seq_len, num_heads * value_head_dim)."""
    step = ops.step
    num_scores = _num_scores(ops, attention, key)
    bias = _position_bias(ops, attention, num_scores, query.itemsize)
    if ops.autocast_size:
        query, key, value = (ops.cast(tensor, ops.autocast_size) for tensor in (query, key, value))
    if step.attention != "flash" or step.expand_kv:
        key, value = (_repeated(ops, attention, tensor) for tensor in (key, value))
    if step.attention in ("eager", "math"):
        return _materialized(ops, attention, query, key, value, num_scores, bias, dropout)
    out = _fused(ops, attention, query, key, value, bias)
    # The flash kernel's output lies in memory as its query does, whose parts were joined head by head.
    return _contiguous(ops, out, out.itemsize) if attention.rotates_apart and step.attention == "flash" else out


def _num_scores(ops: Operators, attention: Attention, key: Tensor) -> int:
    """Scores of all heads, (batch, num_heads, queries, keys), where `key` is not yet repeated."""
    keys = key.elements // (attention.num_kv_heads * attention.head_dim * ops.step.micro_batch)
    return ops.tokens * attention.num_heads * keys


def _position_bias(ops: Operators, attention: Attention, num_scores: int, itemsize: int) -> Tensor | None:
    """T5's biases by distance, each layer's own copy with its mask; all layers share what it is made of.

    Cross-attention has zeros for biases, which need no copy without a mask. Source: Transformers 5.23 `T5Attention`,
    `create_position_bias_mask`.
    """
    if not ops.has_position_biases or (attention.cross and not ops.step.masked):
        return None
    rows = ops.step.micro_batch if ops.step.masked else 1
    elements = num_scores // ops.step.micro_batch
    learns = ops.trainable or (attention.cross and ops.step.checkpointing)
    shared = Tensor("shared position bias", elements, itemsize, learns)
    ops.tape.outside += (shared,)
    bias = Tensor("position bias", elements * rows, itemsize, learns)
    # What comes later is filled with a number; autograd keeps where.
    causal = () if ops.step.masked or not ops.decodes else (Tensor("causal mask", elements // attention.num_heads, 1),)
    return ops.tape.add(Op(bias.name, (shared,), (bias,), causal))


def _repeated(ops: Operators, attention: Attention, x: Tensor) -> Tensor:
    """Keys or values copied to every query head (`repeat_kv`)."""
    groups = attention.num_heads // attention.num_kv_heads
    if groups == 1:
        return x
    # One head for all is expanded, and the copy of an expanded head is a view.
    base = x if attention.num_kv_heads == 1 else None
    out = Tensor(f"{x.name} repeated", x.elements * groups, x.itemsize, base=base)
    return ops.tape.add(Op(out.name, (x,), (out,)))


def _output(ops: Operators, attention: Attention, itemsize: int) -> Tensor:
    return Tensor("attention output", ops.tokens * attention.num_heads * attention.value_head_dim, itemsize)


def _fused(
    ops: Operators, attention: Attention, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
) -> Tensor:
    """Flash and memory-efficient attention: inputs, output and one number a row and head are kept.

    Their backward accumulates the query's gradient in float32. A mask is kept once a layer, in the query's dtype.
    """
    step = ops.step
    out = _output(ops, attention, query.itemsize)
    random = tuple(Tensor(f"attention random {part}", 1, 8, False) for part in ("seed", "offset"))
    sums = Tensor("attention log-sum-exp", ops.tokens * attention.num_heads, ROW_STATISTICS)
    saved: tuple[Tensor, ...] = (query, key, value, out, sums, *random)
    inputs: tuple[Tensor, ...] = (query, key, value)
    if bias:
        inputs, saved = (*inputs, bias), (*saved, bias)
    elif step.masked:
        saved += (Tensor("attention mask", step.num_tokens * step.seq_len, query.itemsize, False),)
    scratch = _flash_scratch if step.attention == "flash" else _efficient_scratch
    needed = scratch(ops, attention, query, key) if step.device == "cuda" else 0
    return ops.tape.add(Op("attention", inputs, (out,), saved, backward_scratch=needed))


def _efficient_scratch(ops: Operators, attention: Attention, query: Tensor, key: Tensor) -> int:
    """Bytes of float32 sums of the query's gradient, for queries of 16 bit."""
    return rounded(query.elements * FLOAT32) if query.itemsize < FLOAT32 else 0


def _flash_scratch(ops: Operators, attention: Attention, query: Tensor, key: Tensor) -> int:
    """Bytes of float32 sums of the query's gradient in whole tiles; gradients of keys and values by query head."""
    rows, heads = ops.step.seq_len, attention.num_heads
    padded_rows = -(-rows // FLASH_TILE_ROWS) * FLASH_TILE_ROWS
    padded_width = -(-attention.head_dim // FLASH_TILE_WIDTH) * FLASH_TILE_WIDTH
    row_sums = ops.step.micro_batch * heads * padded_rows
    groups = heads // attention.num_kv_heads
    expanded = 2 * rounded(key.elements * groups * key.itemsize) if groups > 1 and not ops.step.expand_kv else 0
    return rounded(row_sums * FLOAT32) + rounded(row_sums * padded_width * FLOAT32) + expanded


def _materialized(
    ops: Operators,
    attention: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_scores: int,
    bias: Tensor | None,
    dropout: bool,
) -> Tensor:
    """Scores of shape (batch, num_heads, seq_len, seq_len).

    Eager attention keeps the softmax in float32 and its copy in the input's dtype. Torch's math kernel works in float32
    throughout and keeps float32 copies of the inputs.
    """
    math = ops.step.attention == "math"
    size = query.itemsize
    # Autocast takes products of float32 in 16 bit as well.
    score_size = FLOAT32 if math or (attention.eager_scores == "float32" and not ops.autocast_size) else size
    given = key, value
    # What was repeated is laid out as a batched product reads it.
    repeated = 1 < attention.num_kv_heads < attention.num_heads and not math
    query = _contiguous(ops, query, score_size)
    if not repeated or key.itemsize < score_size:
        key = _contiguous(ops, key, score_size)
    if not repeated:
        value = _contiguous(ops, value, FLOAT32 if math else size)

    def scores(name: str, itemsize: int = score_size) -> Tensor:
        return Tensor(name, num_scores, itemsize)

    raw = ops.tape.add(Op("scores", (query, key), (scores("scores"),), (query, key)))
    scaled = raw if math else ops.tape.add(Op("scaled scores", (raw,), (scores("scaled scores"),)))
    scaled = ops.softcap(scaled) if attention.softcap else scaled
    added = (scaled, bias) if bias else (scaled,)
    masked = ops.tape.add(Op("masked scores", added, (scores("masked scores"),), passes_grad=True))
    ops.tape.hold(scaled)
    # On a GPU, autocast takes every softmax in float32.
    autocasts = ops.autocast_size is not None and ops.step.device == "cuda"
    narrow = not math and attention.eager_scores == "input" and not autocasts
    softmax = scores("softmax", size if narrow else FLOAT32)
    # From float16, but not from bfloat16, CUDA takes the softmax in float32 without a copy.
    reads_narrow = ops.step.device == "cuda" and ops.step.compute_dtype == "float16"
    wide = masked if reads_narrow else ops.cast(masked, softmax.itemsize)
    # CUDA multiplies gradient and output before it subtracts the sums.
    product = softmax.bytes if ops.step.device == "cuda" else 0
    ops.tape.add(Op("softmax", (wide,), (softmax,), (softmax,), backward_scratch=product))
    ops.tape.hold(masked)
    weights = ops.cast(softmax, value.itemsize)
    weights = ops.dropout(weights) if dropout else weights
    out = _output(ops, attention, value.itemsize)
    ops.tape.add(Op("attention", (weights, value), (out,), (weights, value)))
    ops.tape.hold(weights, *given)
    return _contiguous(ops, out, DTYPE_BYTES[ops.step.compute_dtype] if math else out.itemsize)


def _contiguous(ops: Operators, x: Tensor, itemsize: int) -> Tensor:
    """A copy in the layout of batched matrix products."""
    return ops.tape.add(Op(f"{x.name} contiguous", (x,), (Tensor(x.name, x.elements, itemsize),)))
