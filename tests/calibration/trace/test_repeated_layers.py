import pytest

from calibration.allocator.stream import Allocation, Stream
from calibration.trace.repeated_layers import Stack, Trace, UnevenLayersError, with_all_layers

STACK = Stack("layers", left_out=2, first=1, period=1)
"""Layers 0, 1 and 2 were traced; 1 is repeated for two more."""


def traced(sizes=(512, 512, 512), joined=False):
    """Three layers, each of which makes an output that the next one frees, and keeps a tensor for the backward pass."""
    trace = Trace(Stream(), [], [])

    def make(layer, size, name, phase="forward"):
        owner = None if layer is None else f"layers.{layer}"
        trace.stream.begin(phase)
        trace.allocation_layers.append(owner)
        trace.event_layers.append(owner)
        return trace.stream.allocate(Allocation(size, name, owner or "", phase, "temporary"))

    def free(index, layer, phase="forward"):
        trace.stream.begin(phase)
        trace.event_layers.append(None if layer is None else f"layers.{layer}")
        trace.stream.free(index)

    output, kept = make(None, 1024, "embedding"), []
    for layer, size in enumerate(sizes):
        kept.append(make(layer, size, "kept"))
        made = make(layer, 1024, "output")
        free(output, layer)
        output = made
    if joined:
        at = make(None, sum(sizes), "cat")
        trace.parts[at] = [(f"layers.{layer}", size) for layer, size in enumerate(sizes)]
    free(output, None)
    for layer in (2, 1, 0):
        free(kept[layer], layer, "backward")
    return trace


def test_a_layer_left_out_does_what_its_like_does():
    whole = with_all_layers(traced(), [STACK]).stream
    assert whole.peaks() == {"forward": 5 * 512 + 2 * 1024, "backward": 4 * 512}
    assert [a.module for a in whole.allocations if a.name == "kept"] == [f"layers.{n}" for n in range(5)]


def test_the_backward_pass_goes_through_the_layers_against_their_order():
    whole = with_all_layers(traced(), [STACK]).stream
    freed = [whole.allocations[~event].module for event in whole.events if event < 0]
    assert freed[-5:] == [f"layers.{n}" for n in (4, 3, 2, 1, 0)]


def test_everything_that_is_freed_is_freed_once():
    whole = with_all_layers(traced(), [STACK]).stream
    freed = sorted(~event for event in whole.events if event < 0)
    assert freed == list(range(len(whole.allocations)))


def test_what_joins_tensors_of_all_layers_grows_with_them():
    whole = with_all_layers(traced(joined=True), [STACK]).stream
    (joined,) = (a for a in whole.allocations if a.name == "cat")
    assert joined.bytes == 5 * 512


def test_layers_that_make_different_tensors_are_not_repeated():
    with pytest.raises(UnevenLayersError, match="layers of layers that look equal make different tensors"):
        with_all_layers(traced(sizes=(512, 512, 1024)), [STACK])
