"""From token ids to the first layer on the tape: what lies between the embedding's output and the residual stream.

Sources: Transformers 5.23 `GPT2Model.forward`, `OPTDecoder.forward`, `BloomModel.forward`; the hook that makes the
embedding's output a leaf, `PreTrainedModel.enable_input_require_grads`.
"""

from dataclasses import dataclass
from functools import lru_cache

from planner.config.run_config import DTYPE_BYTES
from planner.memory.operators import Operators
from planner.memory.tape import Op, Tape, Tensor, rounded
from planner.step.step_spec import StepSpec
from profiles.architecture import Architecture


@dataclass(frozen=True, slots=True)
class EmbeddingMemory:
    """Bytes beside the first layer's input: `saved` until the backward pass ends, `named` in the forward pass only."""

    saved: int
    named: int


def gives_input_gradients(step: StepSpec) -> bool:
    """Whether the first layer's input has a gradient: of weights that learn, or because checkpointing needs one."""
    return step.adapter is None or step.checkpointing


@lru_cache(maxsize=1024)
def stream_itemsize(architecture: Architecture, step: StepSpec) -> int:
    """Bytes of an element of what enters the first layer."""
    return _tape(architecture, step).output.itemsize


@lru_cache(maxsize=1024)
def embedding_memory(architecture: Architecture, step: StepSpec, offloaded: bool) -> EmbeddingMemory:
    """What the embedding's output adds to a first layer, `offloaded` if that keeps its input in host memory.

    Below an adapter the output is a leaf, and autograd holds leaves. The model's code names it up to the last layer.
    """
    tape = _tape(architecture, step)
    tokens = tape.source
    is_input = tape.output is tokens
    leaf = step.adapter is not None and gives_input_gradients(step)
    saved = sum(tensor.bytes for tensor in tape.saved() if tensor is not tokens)
    held = tokens in tape.saved() or (leaf and (offloaded or not is_input))
    named = not held and not is_input and not architecture.scales_embedding
    positions = sum(rounded(step.seq_len * table.columns * tokens.itemsize) for table in architecture.embeddings[1:])
    return EmbeddingMemory(saved + tokens.bytes * held, positions + tokens.bytes * named)


def _tape(architecture: Architecture, step: StepSpec) -> Tape:
    """The operators between the embedding's output and the first layer."""
    elements = step.num_tokens * architecture.embeddings[0].columns
    source = Tensor("embedded tokens", elements, DTYPE_BYTES[step.base_dtype], gives_input_gradients(step))
    ops = Operators(step, Tape(source), trainable=step.adapter is None)
    x = source
    ops.tape.hold(x)
    if architecture.scales_embedding:
        x = ops.scaled(x, "embedded tokens scaled")
    if architecture.embedding_norm:
        x = ops.norm(architecture.embedding_norm, x)
    if architecture.embedding_projections:
        x = ops.plain(architecture.embedding_projections[0], x)
    if len(architecture.embeddings) > 1:
        x = ops.tape.add(Op("positions", (x,), (Tensor("embedded", x.elements, x.itemsize),), passes_grad=True))
    if "embedding" in architecture.blocks[0].dropout:
        x = ops.dropout(x)
    return ops.tape
