from hypothesis import given
from hypothesis import strategies as st

from planner.memory.tape import Op, Tape, Tensor, rounded

KIB = 1024


def _chain(*sizes: int, saved: bool) -> Tape:
    """Operators in a row, each of which reads what the one before made and keeps it if `saved`."""
    tape = Tape(Tensor("input", sizes[0], 1))
    x = tape.source
    for index, size in enumerate(sizes[1:]):
        x = tape.add(Op(f"op {index}", (x,), (Tensor(f"tensor {index}", size, 1),), saved=(x,) if saved else ()))
    return tape


def test_without_saved_tensors_only_neighbours_are_alive_together():
    assert _chain(1 * KIB, 4 * KIB, 2 * KIB, 1 * KIB, saved=False).forward_peak().bytes == 6 * KIB


def test_saved_tensors_stay_to_the_end_of_the_forward_pass():
    tape = _chain(1 * KIB, 4 * KIB, 2 * KIB, 1 * KIB, saved=True)
    assert tape.saved_bytes() == 7 * KIB
    assert tape.forward_peak(tape.saved()).bytes == 8 * KIB


def test_a_forward_pass_that_keeps_nothing_ignores_saved_tensors():
    assert _chain(1 * KIB, 4 * KIB, 2 * KIB, 1 * KIB, saved=True).forward_peak().bytes == 6 * KIB


def test_a_tensor_that_two_operators_save_counts_once():
    tape = Tape(Tensor("x", 1 * KIB, 1))
    for name in ("q", "k", "v"):
        tape.add(Op(name, (tape.source,), (Tensor(name, KIB, 1),), saved=(tape.source,)))
    assert tape.saved_bytes() == 1 * KIB


def test_the_backward_pass_holds_a_gradient_coming_in_and_one_going_out():
    tape = _chain(1 * KIB, 1 * KIB, saved=False)
    assert tape.backward_peak().bytes == 2 * KIB


def test_an_addition_makes_no_gradients():
    tape = Tape(Tensor("x", 1 * KIB, 1))
    branch = tape.add(Op("branch", (tape.source,), (Tensor("branch", 1 * KIB, 1),)))
    tape.add(Op("add", (tape.source, branch), (Tensor("sum", 1 * KIB, 1),), passes_grad=True))
    assert tape.backward_peak().bytes == 2 * KIB


def test_gradients_added_out_of_place_need_room_for_the_sum():
    def peak(adds_in_place: bool) -> int:
        tape = Tape(Tensor("x", 1 * KIB, 1), adds_in_place=adds_in_place)
        outputs = [tape.add(Op(name, (tape.source,), (Tensor(name, 1 * KIB, 1),))) for name in ("a", "b")]
        tape.add(Op("join", tuple(outputs), (Tensor("join", 1 * KIB, 1),)))
        return tape.backward_peak().bytes

    assert peak(False) == peak(True) + 1 * KIB


def test_a_view_keeps_its_base_alive_and_takes_nothing_itself():
    tape = Tape(Tensor("x", 1 * KIB, 1))
    fused = tape.add(Op("fused", (tape.source,), (Tensor("fused", 2 * KIB, 1),)))
    half = Tensor("half", 1 * KIB, 1, base=fused)
    tape.add(Op("split", (fused,), (half,)))
    tape.add(Op("use", (half,), (Tensor("out", 1 * KIB, 1),), saved=(half,)))
    assert [tensor.name for tensor in tape.saved()] == ["fused"]


def test_gradients_of_weights_stay():
    tape = _chain(1 * KIB, 1 * KIB, 1 * KIB, saved=False)
    for op in tape.ops:
        op.parameter_gradients = 8 * KIB
    assert tape.backward_peak().bytes == 2 * KIB + 16 * KIB


@given(st.lists(st.integers(min_value=1, max_value=10**6), min_size=2, max_size=12))
def test_keeping_tensors_never_costs_less(sizes: list[int]):
    tape = _chain(*sizes, saved=True)
    assert tape.forward_peak(tape.saved()).bytes >= tape.forward_peak().bytes
    assert tape.forward_peak(tape.saved()).bytes >= tape.saved_bytes()


@given(st.integers(min_value=0, max_value=10**12))
def test_blocks_hold_what_they_are_for(num_bytes: int):
    assert num_bytes <= rounded(num_bytes) < num_bytes + 512
    assert rounded(num_bytes) % 512 == 0
