"""How weights come onto a card: in the dtype of the file first, and then as the step holds them.

A trace begins with a model that is there. What loading it took besides stays in the cache of the allocator, in pieces
that later requests are cut from: it decides with them how much is reserved, and how much is lost in rests of blocks.
"""

from itertools import zip_longest
from typing import Literal

from calibration.allocator.stream import Allocation, Kind, Stream
from planner.config.run_config import DTYPE_BYTES
from planner.step.step_spec import StepSpec
from profiles.quantization import find_quantization

_BASE: tuple[Kind, ...] = ("weight", "quantized weight")


def with_loading(
    stream: Stream, step: StepSpec, weights: Literal["placed", "moved"] = "placed", ahead: int = 0
) -> Stream:
    """The stream with its weights loaded before it.

    Placed: as Transformers 5 does it with a `device_map` (`core_model_loading.py`, `modeling_utils.py`). First it takes
    a block for the whole model and gives it back (`caching_allocator_warmup`). Weights come in the order of their
    names. One that is to be quantized comes in the dtype of the file, and goes when it is packed. A k-bit upcast casts
    the others one by one when all are loaded (PEFT `prepare_model_for_kbit_training`). Where threads read the file, as
    many as `ahead` weights more are there, in the dtype of the file, when one is packed.

    Moved: a model that is not quantized comes weight by weight in the order of its modules (`torch.nn.Module.cuda`).
    So do the shares of one that is shared out, with its adapter: the whole model is in host memory until then
    (accelerate 1.15 `fsdp2_load_full_state_dict`).

    Adapters come last: PEFT makes them in the dtype of a base that is not quantized, and casts them when all are there
    (`_move_adapter_to_device_of_base_layer`, `cast_adapter_dtype`).
    """
    end = next((position for position, phase in stream.phases if phase != "load"), len(stream.events))
    loaded = Stream(list(stream.allocations))
    loaded.begin("load")
    base = [event for event in stream.events[:end] if event >= 0 and stream.allocations[event].kind in _BASE]
    if step.weight_shards > 1 or (weights == "moved" and step.quantization is None):
        loaded.events += base
    else:
        _load(loaded, base, step, ahead)
    adapters = [event for event in stream.events[:end] if event >= 0 and stream.allocations[event].kind == "adapter"]
    _load_adapters(loaded, adapters, step)
    placed = {*base, *adapters}
    loaded.events += [event for event in stream.events[:end] if event not in placed]
    moved = len(loaded.events) - end
    loaded.events += stream.events[end:]
    loaded.phases += [(position + moved, phase) for position, phase in stream.phases if position >= end]
    return loaded


def _load(loaded: Stream, base: list[int], step: StepSpec, ahead: int) -> None:
    """Add the allocations `base` and the copies that they are made from."""
    weights = _weights(loaded, base)
    total = sum(_bytes_counted(loaded.allocations[weight], step) for weight, *_ in weights)
    loaded.free(loaded.allocate(Allocation(total, "caching_allocator_warmup", "", "load", "temporary")))
    copies: list[int | None] = []
    casts: list[tuple[int, int]] = []
    for number, (weight, *constants) in enumerate(weights):
        copies += [_arrived(loaded, parts, step) for parts in weights[len(copies) : number + 1 + ahead]]
        copy = copies[number]
        if copy is None:
            continue
        if loaded.allocations[weight].kind == "quantized weight":
            _quantize(loaded, weight, constants, step)
            loaded.free(copy)
        else:
            casts.append((weight, copy))
    for weight, copy in sorted(casts):
        loaded.events.append(weight)
        loaded.free(copy)


def _arrived(loaded: Stream, parts: list[int], step: StepSpec) -> int | None:
    """The copy that a weight is made from; None where it stays as it comes."""
    of_file = _bytes_in_file(loaded.allocations[parts[0]], step)
    if of_file is not None:
        return _copy(loaded, loaded.allocations[parts[0]], of_file)
    loaded.events += parts
    return None


def _quantize(loaded: Stream, weight: int, constants: list[int], step: StepSpec) -> None:
    """Constants of blocks come before what is packed, in float32 until they are quantized themselves.

    Source: bitsandbytes 0.50.2, `backends/cuda/ops.py` and `functional.py` `quantize_4bit`.
    """
    if not constants:
        loaded.events.append(weight)
        return
    first, *others = constants
    if not step.double_quant:
        loaded.events += [first, weight, *others]
        return
    full = loaded.allocations[first]
    wide = _copy(loaded, full, full.bytes * DTYPE_BYTES["float32"])
    loaded.events += [weight, *others, first]
    loaded.free(wide)


def _load_adapters(loaded: Stream, adapters: list[int], step: StepSpec) -> None:
    itemsize = DTYPE_BYTES[step.weight_dtype]
    casts = (
        step.adapter is not None
        and step.weight_shards == 1
        and itemsize < DTYPE_BYTES[step.adapter.dtype]
        and step.quantization is None
    )
    copies = []
    for adapter in adapters if casts else ():
        of_adapter = loaded.allocations[adapter]
        copies.append(_copy(loaded, of_adapter, of_adapter.bytes * itemsize // DTYPE_BYTES["float32"]))
    for adapter, copy in zip_longest(adapters, copies):
        loaded.events.append(adapter)
        if copy is not None:
            loaded.free(copy)


def _copy(loaded: Stream, allocation: Allocation, num_bytes: int) -> int:
    """A copy of an allocation in another dtype, which goes again."""
    return loaded.allocate(Allocation(num_bytes, allocation.name, allocation.module, "load", "temporary"))


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
