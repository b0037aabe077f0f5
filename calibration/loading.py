"""How weights come onto a card: in the dtype of the file first, and then as the step holds them.

A trace begins with a model that is there. What loading it took besides stays in the cache of the allocator, in pieces
that later requests are cut from: it decides with them how much is reserved, and how much is lost in rests of blocks.
"""

from calibration.stream import Allocation, Kind, Stream
from planner.run_config import DTYPE_BYTES
from planner.step import StepSpec
from profiles.quantization import find_quantization

_BASE: tuple[Kind, ...] = ("weight", "quantized weight")


def with_loading(stream: Stream, step: StepSpec) -> Stream:
    """The stream with its weights loaded as Transformers 5 does it (`core_model_loading.py`, `modeling_utils.py`).

    First it takes a block for the whole model and gives it back (`caching_allocator_warmup`). Weights come in the order
    of their names. One that is to be quantized comes in the dtype of the file, and goes when it is packed. A k-bit
    upcast casts the others one by one when all are loaded (PEFT `prepare_model_for_kbit_training`). Adapters come last.
    """
    end = next((position for position, phase in stream.phases if phase != "load"), len(stream.events))
    loaded = Stream(list(stream.allocations))
    loaded.begin("load")
    base = [event for event in stream.events[:end] if event >= 0 and stream.allocations[event].kind in _BASE]
    _load(loaded, base, step)
    placed = set(base)
    loaded.events += [event for event in stream.events[:end] if event not in placed]
    moved = len(loaded.events) - end
    loaded.events += stream.events[end:]
    loaded.phases += [(position + moved, phase) for position, phase in stream.phases if position >= end]
    return loaded


def _load(loaded: Stream, base: list[int], step: StepSpec) -> None:
    """Add the allocations `base` and the copies that they are made from."""
    weights = _weights(loaded, base)
    total = sum(_bytes_counted(loaded.allocations[weight], step) for weight, *_ in weights)
    loaded.free(loaded.allocate(Allocation(total, "caching_allocator_warmup", "", "load", "temporary")))
    casts: list[tuple[int, int]] = []
    for weight, *constants in weights:
        allocation = loaded.allocations[weight]
        of_file = _bytes_in_file(allocation, step)
        if of_file is None:
            loaded.events += [weight, *constants]
            continue
        copy = loaded.allocate(Allocation(of_file, allocation.name, allocation.module, "load", "temporary"))
        if allocation.kind == "quantized weight":
            loaded.events += [weight, *constants]
            loaded.free(copy)
        else:
            casts.append((weight, copy))
    for weight, copy in sorted(casts):
        loaded.events.append(weight)
        loaded.free(copy)


def _weights(stream: Stream, base: list[int]) -> list[list[int]]:
    """Each weight together with the constants of its blocks, whose names go on behind its own; by name."""
    groups: dict[str, list[int]] = {}
    for index in base:
        groups.setdefault(stream.allocations[index].name.partition(" ")[0], []).append(index)
    return [groups[name] for name in sorted(groups, key=_natural)]


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts layers by number (`dot_natural_key`)."""
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name.split(".")]


def _bytes_counted(weight: Allocation, step: StepSpec) -> int:
    """Bytes of a weight as Transformers adds them up before it loads: packed, or in the dtype of the file."""
    packed = weight.kind == "quantized weight"
    return weight.bytes if packed else _bytes_in_file(weight, step) or weight.bytes


def _bytes_in_file(weight: Allocation, step: StepSpec) -> int | None:
    """Bytes of a weight in the dtype that it is loaded in; None where it stays as it is."""
    itemsize = DTYPE_BYTES[step.weight_dtype]
    if weight.kind == "quantized weight" and step.quantization is not None:
        return weight.bytes * 8 // find_quantization(step.quantization).bits * itemsize
    if step.kbit_upcast and itemsize < DTYPE_BYTES["float32"]:
        return weight.bytes * itemsize // DTYPE_BYTES["float32"]
    return None
