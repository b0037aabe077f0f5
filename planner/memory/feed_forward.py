"""The feed-forward part of a layer on the tape: an MLP, or experts of which each token passes a few.

Sources: Transformers 5.23 `integrations/moe.py` (`grouped_mm_experts_forward`) and the routers of its models, such as
`models/mixtral/modeling_mixtral.py`; the loop over experts that are Linear modules in that file of 4.48.
"""

from planner.memory.operators import FLOAT32, INDEX, ROW_STATISTICS, Operators
from planner.memory.tape import Op, Tensor
from profiles.architecture import Experts, Mlp

INT32 = 4
"""Bytes of one int32."""


def feed_forward(ops: Operators, mlp: Mlp | Experts, x: Tensor, dropout: bool) -> Tensor:
    """What the MLP or the experts make of `x`, of its shape; `dropout` is inside of the MLP."""
    with ops.tape.inside(mlp.name):
        return _mlp(ops, mlp, x, dropout) if isinstance(mlp, Mlp) else _experts(ops, mlp, x)


def _mlp(ops: Operators, mlp: Mlp, x: Tensor, dropout: bool = False) -> Tensor:
    if not mlp.gated:
        [up] = (ops.linear(linear, x) for linear in mlp.inputs)
        inner = ops.activation(mlp.activation, up)
    elif len(mlp.inputs) == 2:
        gate_linear, up_linear = mlp.inputs
        gate = ops.activation(mlp.activation, ops.linear(gate_linear, x))
        inner = ops.multiply("gated", gate, ops.linear(up_linear, x))
    else:
        [fused] = (ops.linear(linear, x) for linear in mlp.inputs)
        inner = _gated_halves(ops, mlp, fused)
    out = ops.linear(mlp.output, ops.dropout(inner) if dropout else inner)
    if not mlp.inline:
        ops.tape.hold(x)
    return out


def _gated_halves(ops: Operators, mlp: Mlp, fused: Tensor) -> Tensor:
    """activation(gate) * up, where both are halves of one projection."""
    gate, up = (Tensor(name, fused.elements // 2, fused.itemsize, base=fused) for name in ("gate", "up"))
    ops.tape.add(Op("chunk", (fused,), (gate, up)))
    return ops.multiply("gated", ops.activation(mlp.activation, gate), up)


def _experts(ops: Operators, experts: Experts, x: Tensor) -> Tensor:
    """Routed rows through their experts, as if the router spread the tokens evenly."""
    weights = _routed(ops, experts, x)
    through = _one_by_one if ops.step.experts_quantized else _grouped
    out = through(ops, experts, x, weights)
    ops.tape.hold(x)
    return ops.add("experts + shared", out, _mlp(ops, experts.shared, x)) if experts.shared else out


def _routed(ops: Operators, experts: Experts, x: Tensor) -> Tensor:
    """The weights of the chosen experts; their probabilities and numbers are kept."""
    rows = ops.tokens * experts.num_experts_per_tok
    narrow = ops.cast(x, ops.autocast_size or x.itemsize)
    probabilities = Tensor("router probabilities", ops.tokens * experts.num_experts, ROW_STATISTICS)
    kept = (probabilities, narrow) if ops.trainable else (probabilities,)
    ops.tape.add(Op("router", (narrow,), (probabilities,), kept))
    itemsize = FLOAT32 if experts.float32_weights else narrow.itemsize
    weights, chosen = Tensor("routing weights", rows, itemsize), Tensor("chosen experts", rows, INDEX, False)
    ops.tape.add(Op("top k", (probabilities,), (weights,), (chosen,)))
    if experts.float32_weights:  # Mixtral's weights are divided by their sum where they are.
        sums = Tensor("sum of routing weights", ops.tokens, ROW_STATISTICS)
        divided = Tensor("routing weights", rows, itemsize, base=weights)
        return ops.tape.add(Op("divide", (weights,), (divided,), (sums, weights)))
    return weights


def _grouped(ops: Operators, experts: Experts, x: Tensor, weights: Tensor) -> Tensor:
    """All rows at once: each token is gathered once for each of its experts, and put back in order behind them."""
    rows = ops.tokens * experts.num_experts_per_tok
    hidden, inner = experts.expert.output.out_features, experts.expert.intermediate_size
    order, tokens, back = (Tensor(name, rows, INDEX, False) for name in ("order", "rows in order", "order undone"))
    gathered = Tensor("gathered tokens", rows * hidden, x.itemsize)
    ops.tape.add(Op("gather", (x,), (gathered,), (tokens,)))
    ordered_weights = Tensor("routing weights in order", rows, weights.itemsize)
    ops.tape.add(Op("order weights", (weights,), (ordered_weights,), (order,)))
    # Autocast leaves grouped products alone; Transformers casts what they read to the weights' dtype.
    narrow = ops.cast(gathered, ops.base_size)
    ends = Tensor("ends of groups", experts.num_experts, INT32, False)
    gate_up = _product(ops, "gate_up", narrow, rows * 2 * inner, _gate_up(experts), ends)
    gate, up = (Tensor(name, rows * inner, narrow.itemsize, base=gate_up) for name in ("gate", "up"))
    ops.tape.add(Op("chunk", (gate_up,), (gate, up)))
    product = ops.multiply("gated", ops.activation(experts.expert.activation, gate), up)
    ops.tape.hold(gate_up)
    down = _product(ops, "down", product, rows * hidden, _down(experts), ends)
    weighted = Tensor("weighted", down.elements, max(down.itemsize, weights.itemsize))
    ops.tape.add(
        Op("weigh", (down, ordered_weights), (weighted,), (down, ordered_weights), backward_scratch=weighted.bytes)
    )
    in_order = Tensor("weighted, in order", weighted.elements, weighted.itemsize)
    ops.tape.add(Op("undo order", (weighted,), (in_order,), (back,)))
    # On a GPU, autocast takes sums in float32.
    wide = ops.cast(in_order, FLOAT32) if ops.autocast_size and ops.step.device == "cuda" else in_order
    total = Tensor("experts", x.elements, wide.itemsize)
    ops.tape.add(Op("sum of experts", (wide,), (total,), passes_grad=True))
    ops.tape.hold(gathered, down, in_order)
    return ops.cast(total, x.itemsize)


def _product(ops: Operators, name: str, x: Tensor, elements: int, num_parameters: int, ends: Tensor) -> Tensor:
    """A product of groups of rows, up to their `ends`, each with the matrix of its expert."""
    kept = (x, ends) if ops.trainable else (ends,)
    out = Tensor(name, elements, x.itemsize)
    return ops.tape.add(Op(name, (x,), (out,), kept, parameter_gradients=ops.gradient_bytes(num_parameters)))


def _one_by_one(ops: Operators, experts: Experts, x: Tensor, weights: Tensor) -> Tensor:
    """Experts that are Linear modules, in a loop: each reads its rows, and what it makes is added to the result."""
    elements = ops.tokens * experts.num_experts_per_tok * experts.expert.output.out_features // experts.num_experts
    total = Tensor("experts", x.elements, x.itemsize)
    result = ops.tape.add(Op("zeros", (), (total,)))
    for _ in range(experts.num_experts):
        rows = ops.tape.add(Op("gather", (x,), (Tensor("gathered tokens", elements, x.itemsize),)))
        made = _mlp(ops, experts.expert, rows)
        weighted = Tensor("weighted", elements, max(made.itemsize, weights.itemsize))
        ops.tape.add(Op("weigh", (made, weights), (weighted,), (made,), backward_scratch=weighted.bytes))
        added = Tensor("weighted rows", elements, weighted.itemsize, base=weighted)
        ops.tape.add(Op("pick", (weighted,), (added,)))
        ops.tape.hold(rows)
        sums = Tensor("experts", x.elements, x.itemsize, base=total)
        result = ops.tape.add(Op("add rows", (result, added), (sums,), passes_grad=True))
    return result


def _gate_up(experts: Experts) -> int:
    return experts.num_experts * sum(linear.num_parameters for linear in experts.expert.inputs)


def _down(experts: Experts) -> int:
    return experts.num_experts * experts.expert.output.num_parameters
