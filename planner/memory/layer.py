"""A transformer layer on a tape, built from its parts in the order of Transformers' forward methods."""

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from planner.config.run_config import DTYPE_BYTES
from planner.memory.attention import attend
from planner.memory.feed_forward import feed_forward
from planner.memory.operators import Operators
from planner.memory.tape import Moment, Op, Tape, Tensor
from planner.step.step_spec import StepSpec
from profiles.architecture import Architecture, Attention, Block, Norm


@dataclass(frozen=True)
class LayerMemory:
    """What one layer adds to the timeline, in bytes.

    `input_bytes` is the residual stream that enters it, `output_itemsize` are bytes
    of an element of what leaves it, `saved` what autograd keeps of it without checkpointing,
    `unhooked_bytes` what stays even with it, `cached_bytes` the 16-bit weights that autocast keeps to the end of the
    forward pass. The forward peaks include the input, that of a recomputation also the gradients that wait for it; that
    of the backward pass what is saved, the incoming gradient and the gradients of the layer's own weights. A step needs
    some of the peaks only, so the `tape` is replayed for each when it is asked for.
    """

    tape: Tape = field(repr=False)
    input_bytes: int
    output_itemsize: int
    input_saved: bool
    output_bytes: int
    saved: tuple[Tensor, ...]
    saved_bytes: int
    cached_bytes: int
    parameter_gradient_bytes: int
    unhooked_bytes: int

    @cached_property
    def forward_peak(self) -> Moment:
        """While all that autograd keeps stays."""
        return self.tape.forward_peak(self.saved)

    @cached_property
    def checkpointed_peak(self) -> Moment:
        """While only that stays which checkpointing cannot drop."""
        return self.tape.forward_peak(self.tape.unhooked()) if self.unhooked_bytes else self.inference_peak

    @cached_property
    def inference_peak(self) -> Moment:
        """While nothing stays."""
        return self.tape.forward_peak()

    @cached_property
    def recompute_peak(self) -> Moment:
        """When the backward pass repeats the forward pass."""
        return self.tape.recompute_peak()

    @cached_property
    def backward_peak(self) -> Moment:
        """While the layer's gradients are made."""
        return self.tape.backward_peak()


@lru_cache(maxsize=1024)
def layer_memory(
    block: Block, step: StepSpec, hidden_size: int, itemsize: int, input_gradients: bool = True
) -> LayerMemory:
    """The memory of one layer of `block`, its tape replayed forward and backward."""
    return _replayed(layer_tape(block, step, hidden_size, itemsize, input_gradients))


def _replayed(tape: Tape) -> LayerMemory:
    saved = tape.saved()
    return LayerMemory(
        tape=tape,
        input_bytes=tape.source.bytes,
        output_itemsize=tape.output.itemsize,
        input_saved=tape.source in saved,
        output_bytes=tape.output.bytes,
        saved=saved,
        saved_bytes=sum(tensor.bytes for tensor in saved),
        cached_bytes=tape.cached_bytes(),
        parameter_gradient_bytes=tape.parameter_gradient_bytes(),
        unhooked_bytes=sum(tensor.bytes for tensor in tape.unhooked()),
    )


def layer_tape(block: Block, step: StepSpec, hidden_size: int, itemsize: int, input_gradients: bool = True) -> Tape:
    """The operators of one layer of `block`, which reads a residual stream of `itemsize` bytes an element.

    Without `input_gradients` it is a first layer, below which nothing learns.
    """
    encoded = Tensor("encoder output", step.num_tokens * hidden_size, itemsize) if block.cross_attention else None
    step = decoder_step(step) if encoded else step
    source = Tensor("hidden_states", step.num_tokens * hidden_size, itemsize, input_gradients)
    tape = Tape(source, adds_in_place=step.device == "cuda", outside=(encoded,) if encoded else ())
    biased = block.attention.score_bias == "relative"
    ops = Operators(step, tape, trainable=step.adapter is None, has_position_biases=biased, decodes=encoded is not None)
    if block.parallel:
        _parallel(ops, block, source)
    else:
        _sequential(ops, block, source, encoded)
    # The loop over the layers names it until the layer returns.
    tape.hold(source)
    return tape


def decoder_step(step: StepSpec) -> StepSpec:
    """The step as a decoder with an encoder before it sees it: its rows are the answers."""
    return replace(step, seq_len=step.target_len or step.seq_len)


def encoder_end_memory(architecture: Architecture, step: StepSpec) -> LayerMemory:
    """The final norm of an encoder, whose output stays for all layers of the decoder.

    When the backward pass comes to it, that of the decoder has ended in the table of embeddings, which both share. Its
    gradient stays; where the head shares the table as well, there is one already, to which this is added.
    """
    norm, table = architecture.final_norms[0], architecture.embeddings[0]
    hidden_size = table.columns
    source = Tensor("last hidden_states of the encoder", step.num_tokens * hidden_size, DTYPE_BYTES[step.base_dtype])
    ops = Operators(step, Tape(source, adds_in_place=step.device == "cuda"), trainable=step.adapter is None)
    out = ops.norm(norm, source)
    if "residual" in architecture.blocks[0].dropout:
        out = ops.dropout(out)
    handed_on = Tensor("encoder output", out.elements, out.itemsize, base=out)
    gradient = ops.gradient_bytes(table.num_parameters)
    stays, added = (0, gradient) if architecture.tied else (gradient, 0)
    ops.tape.add(
        Op(
            "to the decoder",
            (out,),
            (handed_on,),
            passes_grad=True,
            parameter_gradients=stays,
            backward_scratch=added,
        )
    )
    memory = _replayed(ops.tape)
    return replace(memory, saved_bytes=memory.saved_bytes + memory.output_bytes)


def _sequential(ops: Operators, block: Block, x: Tensor, encoded: Tensor | None) -> None:
    given = _normed(ops, block.norm_before_attention, x)
    branch = _normed(ops, block.norm_after_attention, _attention(ops, block.attention, given, block))
    attended = _dropped(ops, block, branch)
    x = _added(ops, block, "residual after attention", x, attended)
    if block.cross_attention and encoded:
        branch = _normed(ops, block.norm_before_cross_attention, x)
        branch = _attention(ops, block.cross_attention, branch, block, encoded)
        x = _added(ops, block, "residual after cross-attention", x, _dropped(ops, block, branch))
    branch = _normed(ops, block.norm_before_mlp, x)
    branch = _normed(ops, block.norm_after_mlp, feed_forward(ops, block.mlp, branch, "activation" in block.dropout))
    _added(ops, block, "residual after mlp", x, _dropped(ops, block, branch))
    named = {"attention_input": given, "attention_output": attended}
    ops.tape.hold(*(named[name] for name in block.named_to_the_end))


def _added(ops: Operators, block: Block, name: str, x: Tensor, branch: Tensor) -> Tensor:
    """The residual stream `x` with what a branch made of it."""
    scaled = ops.scaled(branch, f"{branch.name} scaled") if block.scales_residual else branch
    out = ops.add(name, x, scaled)
    ops.tape.hold(branch)
    return out


def _dropped(ops: Operators, block: Block, x: Tensor) -> Tensor:
    return ops.dropout(x) if "residual" in block.dropout else x


def _parallel(ops: Operators, block: Block, x: Tensor) -> None:
    """Attention and MLP read the same stream; a missing second norm means that they share the first."""
    normed = _normed(ops, block.norm_before_attention, x)
    attended = _dropped(ops, block, _attention(ops, block.attention, normed, block))
    second = _normed(ops, block.norm_before_mlp, x) if block.norm_before_mlp else normed
    fed = feed_forward(ops, block.mlp, second, "activation" in block.dropout)
    ops.add("residual", ops.add("attention + mlp", attended, _dropped(ops, block, fed)), x)


def _normed(ops: Operators, norm: Norm | None, x: Tensor) -> Tensor:
    return ops.norm(norm, x) if norm else x


def _attention(ops: Operators, attention: Attention, x: Tensor, block: Block, encoded: Tensor | None = None) -> Tensor:
    """Attention of `x` to itself, or to the encoder's output."""
    with ops.tape.inside(attention.name):
        if attention.kv_lora_rank:
            query, key, value = _latent_heads(ops, attention, x)
        else:
            query, key, value = _heads(ops, attention, x, encoded)
        heads = attend(ops, attention, query, key, value, "attention" in block.dropout)
        [out] = ops.linears([attention.output], [heads])
        ops.tape.hold(x, query, key, value)
        return out


def _heads(ops: Operators, attention: Attention, x: Tensor, encoded: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value after their norms and rotary positions."""
    sources = [x, *[encoded or x] * (len(attention.inputs) - 1)]
    projections = ops.linears(attention.inputs, sources)
    query, key, value = projections if len(projections) == 3 else _split(ops, attention, projections[0])
    if attention.scales_query:
        query = ops.tape.add(Op("scaled query", (query,), (Tensor("scaled query", query.elements, query.itemsize),)))
    for norm in attention.norms:
        if norm.name.startswith("q"):
            query = ops.norm(norm, query)
        else:
            key = ops.norm(norm, key)
    if attention.rotary_dim:
        query, key = ops.rotate(query), ops.rotate(key)
    return query, key, value


def _latent_heads(ops: Operators, attention: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of multi-head latent attention.

    Keys and values come from a latent vector of `kv_lora_rank` a token; the rotary part of all keys is shared.
    """
    *query_linears, down, up = attention.inputs
    *query_norms, latent_norm = attention.norms
    query = ops.linear(query_linears[0], x)
    if query_norms:
        query = ops.linear(query_linears[1], ops.norm(query_norms[0], query))
    compressed = ops.linear(down, x)
    latent = ops.norm(latent_norm, Tensor("latent", ops.tokens * up.in_features, compressed.itemsize, base=compressed))
    expanded = ops.linear(up, latent)
    query = ops.tape.add(Op("query with positions", (query,), (Tensor("query", query.elements, query.itemsize),)))
    key_elements = ops.tokens * attention.num_heads * attention.head_dim
    key = ops.tape.add(Op("key with positions", (expanded,), (Tensor("key", key_elements, expanded.itemsize),)))
    value_elements = ops.tokens * attention.num_heads * attention.value_head_dim
    value = Tensor("value", value_elements, expanded.itemsize, base=expanded)
    ops.tape.add(Op("split", (expanded,), (value,)))
    ops.tape.hold(x)
    return query, key, value


def _split(ops: Operators, attention: Attention, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as views of one projection."""
    sizes = (
        attention.num_heads * attention.head_dim,
        attention.num_kv_heads * attention.head_dim,
        attention.num_kv_heads * attention.value_head_dim,
    )
    query, key, value = (
        Tensor(name, ops.tokens * size, fused.itemsize, base=fused)
        for name, size in zip(("query", "key", "value"), sizes, strict=True)
    )
    ops.tape.add(Op("split", (fused,), (query, key, value)))
    return query, key, value
