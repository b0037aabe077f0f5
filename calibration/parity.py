"""What the closed form says that autograd keeps of a layer, held to what the trace saw, tensor by tensor.

`python -m calibration.parity llama3.1-8b --method qlora --attention eager` prints, for each module of a layer in the
middle, the saved tensors that both name, and those that only one of them has.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from calibration.model_config import transformers_config
from calibration.stream import Phase, Stream
from calibration.trace import trace
from planner.memory.layer import layer_memory, layer_tape
from planner.memory.tape import rounded
from planner.network import network
from planner.run_config import DTYPE_BYTES
from planner.step import StepSpec
from profiles.architecture import Architecture, Block
from profiles.model import ModelProfile

LAYER_LISTS = ("layers", "h", "block", "blocks")
"""Names of the lists of layers in Transformers' classes."""

LAYER = "(layer)"
"""Where neither a norm, a projection, attention nor the MLP makes a tensor: the layer itself adds the residual."""


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor that autograd keeps: the module that made it, its name there or its operator, its bytes."""

    module: str
    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Pair:
    """The same tensor in closed form and trace; None where one of them does not have it."""

    closed_form: SavedTensor | None
    trace: SavedTensor | None


def saved_pairs(model: ModelProfile, step: StepSpec) -> list[Pair]:
    """The saved tensors of the middle layer of each block, from both sides."""
    parts = network(model, step.objective)
    stream = trace(transformers_config(model), step)
    pairs: list[Pair] = []
    for stack, block, layer in _middles(parts):
        if step.checkpointing:
            layer -= layer % step.checkpoint_every
        traced = traced_saved(stream, block, stack, layer, "backward" if step.checkpointing else "forward")
        pairs += matched(list(closed_form_saved(parts, block, step)), list(traced))
    return pairs


def _middles(parts: Architecture) -> Iterator[tuple[str, Block, int]]:
    """For each block the stack that it is in, if there are two, and the number of a layer in the middle of it."""
    both = any(block.cross_attention for block in parts.blocks)
    first = 0
    for block in parts.blocks:
        stack = "" if not both else "decoder" if block.cross_attention else "encoder"
        yield stack, block, (0 if both else first) + block.count // 2
        first += block.count


def matched(closed: list[SavedTensor], traced: list[SavedTensor]) -> list[Pair]:
    """Tensors of one module and of equal bytes are the same, in the order of the forward pass.

    What is left may be in another module: some classes add the residual inside of attention and MLP, others apply the
    activation outside of it.
    """
    rest = list(traced)
    twins: dict[int, SavedTensor] = {}
    for same_module in (True, False):
        for index, tensor in enumerate(closed):
            alike = (t for t in rest if t.bytes == tensor.bytes and _may_be(tensor, t, same_module))
            twin = next(alike, None) if index not in twins else None
            if twin:
                rest.remove(twin)
                twins[index] = twin
    return [Pair(tensor, twins.get(index)) for index, tensor in enumerate(closed)] + [Pair(None, t) for t in rest]


def _may_be(closed: SavedTensor, traced: SavedTensor, same_module: bool) -> bool:
    return closed.module == traced.module if same_module else LAYER in (closed.module, traced.module)


def closed_form_saved(parts: Architecture, block: Block, step: StepSpec) -> Iterator[SavedTensor]:
    """What the tape of a layer keeps. Its input, which the layer before made, stands for its output, which is alike."""
    step = step if parts.quantizable else replace(step, quantization=None)
    width, itemsize = parts.embeddings[0].columns, DTYPE_BYTES[step.base_dtype]
    # The residual stream is what the layer before makes it.
    itemsize = layer_memory(block, step, width, itemsize).output_itemsize
    for module, tensor in layer_tape(block, step, width, itemsize).saved_by_module():
        yield SavedTensor(module or LAYER, tensor.name, tensor.bytes)


def traced_saved(stream: Stream, block: Block, stack: str, layer: int, phase: Phase) -> Iterator[SavedTensor]:
    """What the trace saw as saved in one layer in the last step: in its forward pass, or when it is repeated."""
    modules = set(module_names(block))
    last = max(start for start, phase in stream.phases if phase == "forward")
    for event in stream.events[last:]:
        allocation = stream.allocations[max(event, 0)]
        inside = _inside(allocation.module, stack, layer) if allocation.bytes else None
        if event < 0 or inside is None or (allocation.kind, allocation.phase) != ("saved tensor", phase):
            continue
        named = [part for part in inside if part in modules]
        yield SavedTensor(named[-1] if named else LAYER, allocation.name, rounded(allocation.bytes))


def module_names(block: Block) -> Iterator[str]:
    """Names of the modules of a layer that the closed form knows."""
    yield from (linear.name for linear in block.linears)
    yield from (norm.name for norm in block.norms)
    yield from (part.name for part in (block.attention, block.cross_attention, block.mlp) if part)


def _inside(module: str, stack: str, layer: int) -> list[str] | None:
    """The parts of a module's path inside of one layer of `stack`; None where it is elsewhere."""
    found = re.search(rf"{stack}.*?\.(?:{'|'.join(LAYER_LISTS)})\.{layer}(?:\.|$)", module)
    return module[found.end() :].split(".") if found else None
