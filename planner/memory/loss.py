"""From the last layer to the loss on the tape: final norm, head, and the ways to the cross entropy or the score.

Sources: Transformers 5.23 `loss/loss_utils.py`; TRL 1.16 `kernels/chunked_logprob.py`, 1.7-1.14 `chunked_nll`; Liger
0.8.5 `ops/fused_linear_cross_entropy.py`; fms-acceleration's fused cross entropy, which is Unsloth's kernel.
"""

from collections.abc import Callable
from dataclasses import replace

from planner.memory.operators import FLOAT32, ROW_STATISTICS, Operators
from planner.memory.tape import Op, Tape, Tensor, rounded
from planner.step.step_spec import StepLoss, StepSpec
from profiles.architecture import Architecture, Linear

TILE_TOKENS, TILE_VOCABULARY = 4096, 32768
"""Largest tile of logits that TRL's fused head makes (`TOKEN_CHUNK_SIZE`, `_CHUNKED_LOGPROB_CHUNK_SIZE`)."""

OUTSIDE_OF_THE_MODEL: frozenset[StepLoss] = frozenset({"odds_ratio"})
"""Losses that a trainer takes of the model's output, when the model's code has returned and autocast has ended."""

CHUNK_TOKENS = 256
"""Tokens a chunk of TRL's `chunked_nll`."""


def loss_tape(architecture: Architecture, step: StepSpec, itemsize: int) -> Tape:
    """The operators from the residual stream, of `itemsize` bytes an element, to the scalar loss."""
    step = step if architecture.upcasts_logits else replace(step, upcast_logits=False)
    hidden_size = architecture.blocks[-1].attention.output.out_features
    source = Tensor("last hidden_states", step.num_tokens * hidden_size, itemsize)
    ops = Operators(step, Tape(source, adds_in_place=step.device == "cuda"), trainable=step.adapter is None)
    x = source
    for norm in architecture.final_norms[-1:]:
        x = ops.norm(norm, x)
    PATHS[step.loss](ops, architecture, x)
    if step.loss not in OUTSIDE_OF_THE_MODEL:
        # The model's class names what the head reads until the loss is there.
        ops.tape.hold(x)
    return ops.tape


def _scalar(ops: Operators, name: str, inputs: tuple[Tensor, ...], saved: tuple[Tensor, ...] = ()) -> None:
    ops.tape.add(Op(name, inputs, (Tensor("loss", 1, FLOAT32),), saved))


def _logits(ops: Operators, parts: Architecture, x: Tensor) -> Tensor:
    """All logits; the caller's output keeps them to the end of the backward pass where the step says so."""
    logits = ops.plain(parts.head, x)
    if parts.scales_logits:
        logits = ops.scaled(logits, "scaled logits")
    if ops.step.upcast_in_model:
        logits = ops.cast(logits, FLOAT32)
    if ops.step.output_alive:
        maker = ops.tape.ops[-1]
        maker.saved += (logits,)
    return ops.softcap(logits) if parts.logit_softcap is not None else logits


def _full(ops: Operators, parts: Architecture, x: Tensor) -> None:
    """Logits, a float32 copy, the log-softmax: 10 bytes a logit forward in 16 bit, 12 backward.

    Older Transformers also copied the logits to shift them, and GPT-BigCode left them in 16 bit.
    """
    logits = _logits(ops, parts, x)
    wide = ops.cast(logits, FLOAT32) if ops.step.upcast_logits else logits
    given = _shifted(ops, wide)
    in_float32 = ops.cast(given, FLOAT32) if ops.autocast_size else given
    log_softmax = Tensor("log-softmax", given.elements, in_float32.itemsize)
    ops.tape.add(Op("log_softmax", (in_float32,), (log_softmax,), (log_softmax,)))
    _scalar(ops, "nll", (log_softmax,))
    ops.tape.hold(logits, wide, given)


def _shifted(ops: Operators, logits: Tensor) -> Tensor:
    """A contiguous copy of all but the last position; of a single row that is a view."""
    if not ops.step.shift_logits or ops.step.micro_batch == 1:
        return logits
    return ops.tape.add(Op("shift", (logits,), (Tensor("shifted logits", logits.elements, logits.itemsize),)))


def _full_inplace(ops: Operators, parts: Architecture, x: Tensor) -> None:
    """Unsloth's kernel, which writes the gradient over the logits that it is given."""
    logits = _logits(ops, parts, x)
    wide = ops.cast(logits, FLOAT32) if ops.step.upcast_logits else logits
    given = _shifted(ops, wide)
    sums, losses = (Tensor(name, ops.tokens, ROW_STATISTICS) for name in ("log-sum-exp", "losses"))
    # Logits that the caller keeps are there in any case.
    written_over = 0 if given is logits and ops.step.output_alive else given.bytes
    ops.tape.add(Op("cross entropy", (given,), (losses,), (given, sums), backward_scratch=-written_over))
    _scalar(ops, "mean", (losses,))
    ops.tape.hold(logits, wide)


def _chunked(ops: Operators, parts: Architecture, x: Tensor) -> None:
    """256 rows of logits at a time, computed again in the backward pass; a chunk's gradients wait for the last one's.

    The gradient of the head is that of the first chunk, to which those of the others are added.
    """
    head = parts.head
    rows = min(ops.tokens, CHUNK_TOKENS)
    share = Tensor("chunk", rows * head.in_features, x.itemsize)
    chunk = Operators(ops.step, Tape(share, ops.tape.adds_in_place), ops.trainable)
    logits = chunk.cast(chunk.plain(head, share), FLOAT32)
    log_softmax = Tensor("log-softmax", logits.elements, FLOAT32)
    chunk.tape.add(Op("log_softmax", (logits,), (log_softmax,), (log_softmax,)))
    _scalar(chunk, "nll", (log_softmax,))
    copies = tuple(tensor for op in chunk.tape.ops for tensor in op.cached)
    backward = max(chunk.tape.recompute_peak().bytes, chunk.tape.backward_peak().bytes)
    counted = _head_gradient(ops, head) if rows == ops.tokens else 0
    ops.tape.add(
        Op(
            "chunked loss",
            (x,),
            (Tensor("loss", 1, FLOAT32),),
            (x,),
            # A chunk is a view.
            scratch=chunk.tape.forward_peak().bytes - share.bytes - sum(copy.bytes for copy in copies),
            backward_scratch=backward - 2 * share.bytes - counted,
            parameter_gradients=_head_gradient(ops, head),
            cached=copies,
        )
    )


def _fused(ops: Operators, parts: Architecture, x: Tensor) -> None:
    """Tiles of tokens x vocabulary, recomputed in the backward pass; gradients add up in float32.

    Without Triton, on a CPU, each tile also takes its float32 forms, and its product with the head float32 weights.
    """
    head = parts.head
    size = ops.autocast_size or x.itemsize
    # The last token of a row has no label.
    labels = max(ops.tokens - ops.step.micro_batch, 1)
    rows = min(labels, TILE_TOKENS)
    buffer = rounded(rows * TILE_VOCABULARY * size)
    columns = min(head.out_features, TILE_VOCABULARY)
    weight = 0 if ops.base_size == size else rounded(columns * head.in_features * size)
    hidden = 0 if x.itemsize == size else rounded(rows * head.in_features * size)
    if ops.step.device == "cpu":
        tile = rounded(rows * columns * FLOAT32)
        wide_weight = rounded(columns * head.in_features * FLOAT32) if size < FLOAT32 else 0
        forward, backward = 4 * tile, max(7 * tile + tile // 4, tile + wide_weight)
    else:
        forward, backward = 0, 0
    compact = Tensor("hidden_states of labels", x.elements // ops.tokens * labels, x.itemsize)
    ops.tape.add(Op("select", (x,), (compact,)))
    wide_gradient = 0 if x.itemsize == FLOAT32 else rounded(compact.elements * FLOAT32)
    _scalar(ops, "fused loss", (compact,), (compact,))
    op = ops.tape.ops[-1]
    op.scratch = buffer + weight + hidden + forward
    op.backward_scratch = buffer + weight + hidden + wide_gradient + backward
    if ops.trainable:
        op.backward_scratch += rounded(head.num_parameters * FLOAT32) if ops.base_size < FLOAT32 else 0
        op.parameter_gradients = _head_gradient(ops, head)


def _liger(ops: Operators, parts: Architecture, x: Tensor) -> None:
    """Chunks of logits whose gradients are computed in the forward pass: of the input, and of the head if it learns.

    The logits become their own gradient. What a chunk adds to the head's is a product in the logits' dtype, and the
    same in the head's.
    """
    head = parts.head
    size = ops.autocast_size or x.itemsize
    narrow = ops.cast(x, size)
    pieces = -(-head.out_features // head.in_features)
    rows = min(ops.tokens, 1 << (-(-ops.tokens // pieces) - 1).bit_length())
    tile, product = rounded(rows * head.out_features * size), rounded(rows * head.in_features * size)
    gradient = Tensor("gradient of hidden_states", x.elements, size)
    weight = Tensor("gradient of the head", head.num_parameters if ops.trainable else 0, ops.base_size)
    added = rounded(head.num_parameters * size) + (weight.bytes if ops.base_size != size else 0)
    copy = ops.weight_copy(head)
    ops.tape.add(
        Op(
            "liger loss",
            (narrow,),
            (Tensor("loss", 1, FLOAT32),),
            (gradient, weight),
            scratch=tile + product + added * ops.trainable + sum(c.bytes for c in copy) * (not ops.trainable),
            # The head's gradient is the one that was saved.
            backward_scratch=-weight.bytes,
            parameter_gradients=_head_gradient(ops, head),
            cached=copy if ops.trainable else (),
        )
    )


def _odds_ratio(ops: Operators, parts: Architecture, x: Tensor) -> None:
    """ORPO in TRL 1.16: all logits, the cross entropy of the chosen half, and log-probabilities of both halves.

    Accelerate hands the logits of autocast on in float32. Each slice of the logits has a gradient of their full size.
    """
    logits = _logits(ops, parts, x)
    wide = ops.cast(logits, FLOAT32) if ops.autocast_size else logits
    half = wide.elements // 2
    rows = Tensor("logits of the chosen", half, wide.itemsize, base=wide)
    ops.tape.add(Op("slice of the chosen", (wide,), (rows,)))
    chosen = ops.tape.add(Op("shift", (rows,), (Tensor("shifted logits of the chosen", half, wide.itemsize),)))
    log_softmax = Tensor("log-softmax of the chosen", half, wide.itemsize)
    ops.tape.add(Op("log_softmax", (chosen,), (log_softmax,), (log_softmax,)))
    nll = ops.tape.add(Op("nll", (log_softmax,), (Tensor("nll", 1, FLOAT32),)))
    ops.tape.hold(chosen)
    answers = Tensor("logits of the labels", wide.elements, wide.itemsize, base=wide)
    ops.tape.add(Op("slice", (wide,), (answers,)))
    logps = _log_probabilities(ops, answers)
    _scalar(ops, "odds ratio", (nll, logps))
    ops.tape.hold(wide)


def _log_probabilities(ops: Operators, logits: Tensor) -> Tensor:
    """Log-probabilities of the labels: one kernel of TRL on a card, a loop over rows without Triton."""
    sums = Tensor("log-sum-exp", ops.tokens, ROW_STATISTICS)
    logps = Tensor("log-probabilities", ops.tokens, FLOAT32)
    if ops.step.device == "cuda":
        return ops.tape.add(Op(logps.name, (logits,), (logps,), (logits, sums)))
    # Counted on a CPU, zeros and what is scattered into them are two.
    picked = ops.tape.add(
        Op(
            "gather",
            (logits,),
            (Tensor("picked logits", ops.tokens, logits.itemsize),),
            saved=(logits,),
            backward_scratch=logits.bytes,
        )
    )
    # The gradients of the rows are stacked.
    ops.tape.add(Op("log-sum-exp", (logits,), (sums,), (logits, sums), backward_scratch=logits.bytes))
    return ops.tape.add(Op(logps.name, (picked, sums), (logps,)))


def _score(ops: Operators, parts: Architecture, x: Tensor) -> None:
    """A reward model: one number a token, of which the last of each row counts. The head learns below any adapter."""
    head = parts.head
    narrow = ops.cast(x, ops.autocast_size or x.itemsize)
    scores = Tensor("scores", ops.tokens, narrow.itemsize)
    ops.tape.add(Op("score", (narrow,), (scores,), (narrow,), parameter_gradients=_head_gradient(ops, head)))
    _scalar(ops, "score loss", (scores,))


def _head_gradient(ops: Operators, head: Linear) -> int:
    return ops.gradient_bytes(head.num_parameters)


PATHS: dict[StepLoss, Callable[[Operators, Architecture, Tensor], None]] = {
    "full": _full,
    "full_inplace": _full_inplace,
    "chunked": _chunked,
    "fused": _fused,
    "liger": _liger,
    "odds_ratio": _odds_ratio,
    "score": _score,
}
"""What writes each way to the loss, for a model of these parts, from its normalized hidden states."""
