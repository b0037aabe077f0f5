"""What the closed form says that autograd keeps of a layer, held to what the trace saw, tensor by tensor.

`python -m calibration.parity llama3.1-8b --method qlora --attention eager` prints, for a layer in the middle, the saved
tensors of each module: its bytes, its name on the tape, and the operator that made it in the trace.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

import typer

from calibration.allocator.stream import Phase, Stream
from calibration.trace.model_config import transformers_config
from calibration.trace.step_trace import trace
from planner.config.run_config import Quantization
from planner.memory.embedding import stream_itemsize
from planner.memory.layer import layer_memory, layer_tape
from planner.memory.tape import rounded
from planner.step.network import network
from planner.step.step_spec import Adapter, AttentionKernel, StepSpec
from profiles.architecture import Architecture, Block
from profiles.errors import FituneError
from profiles.model import ModelProfile
from profiles.model_catalog import find_model

LAYER_LISTS = ("layers", "h", "block", "blocks")
"""Names of the lists of layers in Transformers' classes."""

LAYER = "(layer)"
"""Where neither a norm, a projection, attention nor the MLP makes a tensor: the layer itself adds the residual."""

NUMBER = "lift_fresh"
"""The operator that makes a tensor of a Python number: a scalar, such as Falcon makes of its mask's fill value."""


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
    width, itemsize = parts.embeddings[0].columns, stream_itemsize(parts, step)
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
        if allocation.name == NUMBER:
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


class Method(StrEnum):
    """What learns, and what is packed."""

    FULL = "full"
    LORA = "lora"
    QLORA = "qlora"
    INT8 = "int8"


class Kernel(StrEnum):
    """The attention kernels of a step."""

    EAGER = "eager"
    MATH = "math"
    EFFICIENT = "efficient"
    FLASH = "flash"


def main(
    model: Annotated[str, typer.Argument(help="A model of the catalog: its Hub id or an alias.")],
    method: Annotated[Method, typer.Option(help="What learns, and what is packed.")] = Method.LORA,
    attention: Annotated[Kernel, typer.Option(help="The attention kernel that runs.")] = Kernel.FLASH,
    checkpointing: Annotated[bool, typer.Option(help="Compare what is kept when a layer is repeated.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Rows of the batch.")] = 1,
    length: Annotated[int, typer.Option(min=1, help="Tokens a row.")] = 512,
) -> None:
    """Print the saved tensors of a layer in the middle by closed form and trace; exit 1 if one is missing."""
    try:
        profile = find_model(model)
        step = named_step(profile, method.value, attention.value, checkpointing, batch, length)
        pairs = saved_pairs(profile, step)
    except FituneError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    for pair in pairs:
        typer.echo(_line(pair))
    if any(pair.closed_form is None or pair.trace is None for pair in pairs):
        raise typer.Exit(1)


def named_step(
    model: ModelProfile, method: str, attention: AttentionKernel, checkpointing: bool, batch: int, length: int
) -> StepSpec:
    """A step in bfloat16; adapters of rank 8 on all projections in float32 under autocast."""
    names = tuple(sorted({linear.name for linear, _ in network(model, "sft").linears()}))
    quantization: dict[str, Quantization] = {"qlora": "nf4", "int8": "int8"}
    return StepSpec(
        micro_batch=batch,
        seq_len=length,
        weight_dtype="bfloat16",
        adapter=None if method == "full" else Adapter(8, names, 0.0, "float32"),
        autocast=None if method == "full" else "bfloat16",
        quantization=quantization.get(method),
        attention=attention,
        checkpointing=checkpointing,
    )


def _line(pair: Pair) -> str:
    tensor = pair.closed_form or pair.trace
    assert tensor is not None
    names = (side.name if side else "-" for side in (pair.closed_form, pair.trace))
    return f"{tensor.module:<26}{tensor.bytes:>14,}  {' | '.join(names)}"


application = typer.Typer(add_completion=False)
application.command()(main)

if __name__ == "__main__":
    application()
