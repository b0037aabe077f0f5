from dataclasses import replace

import pytest

from calibration.allocator.caching import Settings
from calibration.allocator.loading import with_loading
from calibration.allocator.replay import replay
from calibration.allocator.stream import Allocation, Kind, Stream
from planner.step.step_spec import Adapter, StepSpec
from profiles.overheads import MIB

QLORA = StepSpec(1, 8, "bfloat16", Adapter(8, ("q_proj",), 0.0, "float32"), quantization="nf4", kbit_upcast=True)


def loaded(*weights: tuple[str, int, Kind]) -> Stream:
    """A stream that begins with these, in bytes, and takes one temporary in a forward pass."""
    stream = Stream()
    stream.begin("load")
    for name, num_bytes, kind in weights:
        stream.allocate(Allocation(num_bytes, name, "", "load", kind))
    stream.begin("forward")
    stream.free(stream.allocate(Allocation(MIB, "mm", "", "forward", "temporary")))
    return stream


MODEL = loaded(
    ("model.embed.weight", 64 * MIB, "weight"),
    ("model.layers.0.q_proj.weight", 16 * MIB, "quantized weight"),
    ("model.layers.0.q_proj.lora_A", 3 * MIB, "adapter"),
    ("model.layers.10.q_proj.weight", 15 * MIB, "quantized weight"),
    ("model.layers.2.q_proj.weight", 14 * MIB, "quantized weight"),
    ("model.layers.0.q_proj.weight absmax", 2 * MIB, "quantized weight"),
)


def history(stream: Stream) -> list[str]:
    """What the stream takes (+) and gives back (-) while it loads, as sizes in MiB."""
    end = next(position for position, phase in stream.phases if phase == "forward")
    events = stream.events[:end]
    return [f"{'+-'[event < 0]}{stream.allocations[max(event, ~event)].bytes // MIB}" for event in events]


def test_weights_come_by_name_through_copies_in_the_dtype_of_the_file():
    assert history(with_loading(MODEL, QLORA)) == [
        *("+77", "-77"),  # a block for the whole model: 32 MiB of 16-bit weights, 45 packed
        "+32",  # the embedding in 16 bit
        *("+64", "+2", "+16", "-64"),  # 16-bit weight, scales of its blocks, packed weight
        *("+56", "+14", "-56"),  # layer 2 before layer 10
        *("+60", "+15", "-60"),
        *("+64", "-32"),  # the upcast
        "+3",  # the adapter
    ]


def test_threads_that_are_ahead_leave_copies_beside_what_is_packed():
    assert history(with_loading(MODEL, QLORA, ahead=2))[2:] == [
        *("+32", "+64", "+56"),  # three weights of the file are there
        "+60",
        *("+2", "+16", "-64"),
        *("+14", "-56", "+15", "-60"),
        *("+64", "-32", "+3"),
    ]
    all_at_once = history(with_loading(MODEL, QLORA, ahead=100))
    assert all_at_once[2:6] == ["+32", "+64", "+56", "+60"]
    assert sorted(all_at_once) == sorted(history(with_loading(MODEL, QLORA)))


def test_weights_that_stay_as_they_are_come_without_copies():
    step = StepSpec(1, 8, "bfloat16")
    assert history(with_loading(loaded(("b", 8 * MIB, "weight"), ("a", 4 * MIB, "weight")), step)) == [
        *("+12", "-12"),
        *("+4", "+8"),
    ]


def test_a_model_that_is_moved_comes_in_its_own_order():
    step = StepSpec(1, 8, "bfloat16")
    stream = loaded(("b", 8 * MIB, "weight"), ("a", 4 * MIB, "weight"))
    assert history(with_loading(stream, step, "moved")) == ["+8", "+4"]
    assert history(with_loading(MODEL, QLORA, "moved")) == history(with_loading(MODEL, QLORA))


def test_adapters_of_16_bit_weights_are_cast_when_all_are_there():
    step = StepSpec(1, 8, "bfloat16", Adapter(8, ("q_proj",), 0.0, "float32"))
    stream = loaded(("w", 4 * MIB, "weight"), ("w.lora_A", 2 * MIB, "adapter"), ("w.lora_B", 6 * MIB, "adapter"))
    assert history(with_loading(stream, step))[3:] == ["+1", "+3", "+2", "-1", "+6", "-3"]


def test_scales_that_are_quantized_themselves_are_float32_before():
    step = replace(QLORA, double_quant=True, kbit_upcast=False)
    stream = loaded(("w", 16 * MIB, "quantized weight"), ("w absmax", 2 * MIB, "quantized weight"))
    assert history(with_loading(stream, step))[2:] == ["+64", "+8", "+16", "+2", "-8", "-64"]


@pytest.mark.parametrize(("scheme", "copy"), [("nf4", "+64"), ("fp4", "+64"), ("int8", "+32")])
def test_a_copy_has_two_bytes_for_each_element(scheme, copy):
    step = StepSpec(1, 8, "float16", quantization=scheme)
    assert history(with_loading(loaded(("w", 16 * MIB, "quantized weight")), step))[2] == copy


def test_the_step_itself_stays_as_it_is():
    changed = with_loading(MODEL, QLORA)
    before, after = (replay(stream, Settings(expandable_segments=True)) for stream in (MODEL, changed))
    assert changed.events[-2:] == MODEL.events[-2:]
    assert [phase for _, phase in changed.phases] == [phase for _, phase in MODEL.phases]
    assert after.allocated_at_end == before.allocated_at_end
