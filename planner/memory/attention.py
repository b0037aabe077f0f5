"""Attention on the tape: what each kernel keeps and what it needs while it runs.

Sources: Transformers 5.23 `integrations/sdpa_attention.py` and `eager_attention_forward`; torch 2.13
`aten/src/ATen/native/transformers/{sdp_utils.cpp,cuda/attention_backward.cu}`.
"""

from planner.memory.operators import FLOAT32, ROW_STATISTICS, Operators
from planner.memory.tape import Op, Tensor, rounded
from planner.run_config import DTYPE_BYTES
from profiles.architecture import Attention


def attend(ops: Operators, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The heads' output of shape (batch, seq_len, num_heads * value_head_dim)."""
    step = ops.step
    if ops.autocast_size:
        query, key, value = (ops.cast(tensor, ops.autocast_size) for tensor in (query, key, value))
    if step.attention in ("eager", "math") or step.expand_kv:
        key, value = (_repeated(ops, attention, tensor) for tensor in (key, value))
    if step.attention in ("eager", "math"):
        return _materialized(ops, attention, query, key, value)
    return _fused(ops, attention, query, key, value)


def _repeated(ops: Operators, attention: Attention, x: Tensor) -> Tensor:
    """Keys or values copied to every query head (`repeat_kv`)."""
    groups = attention.num_heads // attention.num_kv_heads
    if groups == 1:
        return x
    out = Tensor(f"{x.name} repeated", x.elements * groups, x.itemsize)
    return ops.tape.add(Op(out.name, (x,), (out,)))


def _output(ops: Operators, attention: Attention, itemsize: int) -> Tensor:
    return Tensor("attention output", ops.tokens * attention.num_heads * attention.value_head_dim, itemsize)


def _fused(ops: Operators, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Flash and memory-efficient attention: inputs, output and one number a row and head are kept.

    Their backward accumulates the query's gradient in float32. A mask is kept once a layer, in the query's dtype.
    """
    step = ops.step
    out = _output(ops, attention, query.itemsize)
    sums = Tensor("attention log-sum-exp", ops.tokens * attention.num_heads, ROW_STATISTICS)
    saved: tuple[Tensor, ...] = (query, key, value, out, sums)
    if step.masked:
        saved += (Tensor("attention mask", step.num_tokens * step.seq_len, query.itemsize, False),)
    accumulator = rounded(query.elements * FLOAT32) if step.device == "cuda" and query.itemsize < FLOAT32 else 0
    return ops.tape.add(Op("attention", (query, key, value), (out,), saved, backward_scratch=accumulator))


def _materialized(ops: Operators, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scores of shape (batch, num_heads, seq_len, seq_len).

    Eager attention keeps the softmax in float32 and its copy in the input's dtype. Torch's math kernel works in float32
    throughout and keeps float32 copies of the inputs.
    """
    math = ops.step.attention == "math"
    size = query.itemsize
    query, key, value = (
        _contiguous(ops, tensor, FLOAT32 if math else tensor.itemsize) for tensor in (query, key, value)
    )
    num_scores = ops.tokens * ops.step.seq_len * attention.num_heads
    score_size = FLOAT32 if math or attention.eager_scores == "float32" else size

    def scores(name: str, itemsize: int = score_size) -> Tensor:
        return Tensor(name, num_scores, itemsize)

    raw = ops.tape.add(Op("scores", (query, key), (scores("scores"),), (query, key)))
    scaled = raw if math else ops.tape.add(Op("scaled scores", (raw,), (scores("scaled scores"),)))
    scaled = ops.softcap(scaled) if attention.softcap else scaled
    masked = ops.tape.add(Op("masked scores", (scaled,), (scores("masked scores"),), passes_grad=True))
    ops.tape.hold(scaled)
    softmax = scores("softmax", size if not math and attention.eager_scores == "input" else FLOAT32)
    wide = masked if ops.step.device == "cuda" else ops.cast(masked, softmax.itemsize)
    ops.tape.add(Op("softmax", (wide,), (softmax,), (softmax,), backward_scratch=_widened(softmax, wide)))
    weights = ops.cast(softmax, query.itemsize)
    out = _output(ops, attention, query.itemsize)
    ops.tape.add(Op("attention", (weights, value), (out,), (weights, value)))
    ops.tape.hold(weights)
    return _contiguous(ops, out, DTYPE_BYTES[ops.step.compute_dtype] if math else out.itemsize)


def _widened(softmax: Tensor, source: Tensor) -> int:
    """Bytes of the float32 gradient that precedes the cast to a 16-bit source."""
    return softmax.bytes if source.itemsize < softmax.itemsize else 0


def _contiguous(ops: Operators, x: Tensor, itemsize: int) -> Tensor:
    """A copy in the layout of batched matrix products."""
    return ops.tape.add(Op(f"{x.name} contiguous", (x,), (Tensor(x.name, x.elements, itemsize),)))
