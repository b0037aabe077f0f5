import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from trl.trainer.utils import selective_log_softmax

from calibration.trace.gpu_attention import FusedAttention
from calibration.trace.gpu_operators import as_on_gpu, kernels, scratch
from calibration.trace.module_path import ModulePath
from calibration.trace.recorder import Recorder
from tests.calibration.traced_steps import LORA

pytestmark = pytest.mark.slow

ROWS, WIDTH = 64, 128


def made(function, *shapes, dtype=torch.bfloat16, learns=False):
    """Bytes of what `function` makes of fake tensors as on a GPU, by operator, and the most that is alive at once."""
    with FakeTensorMode(), as_on_gpu(LORA), ModulePath({}, []) as path:
        arguments = [torch.empty(shape, dtype=dtype, requires_grad=learns) for shape in shapes]
        recorder = Recorder(path, kernels(LORA), scratch(LORA))
        with recorder:
            recorder.begin("forward")
            result = function(*arguments)
        del result
    stream = recorder.stream
    return [(a.name, a.bytes) for a in stream.allocations], max(stream.peaks().values())


def test_dropout_keeps_a_byte_an_element():
    operators, _ = made(lambda x: functional.dropout(x, 0.1), (ROWS, WIDTH))
    assert operators == [("native_dropout", 2 * ROWS * WIDTH), ("native_dropout", ROWS * WIDTH)]


def test_dropout_that_drops_nothing_makes_nothing():
    assert made(lambda x: functional.dropout(x, 0.0) + 1, (ROWS, WIDTH))[0] == [("add", 2 * ROWS * WIDTH)]


def test_a_mask_selects_by_positions_of_eight_bytes_a_dimension():
    operators, _ = made(lambda x: x[x > 0], (ROWS, WIDTH))
    assert operators == [
        ("gt", ROWS * WIDTH),
        ("empty", 2 * 8 * ROWS * WIDTH),
        ("index", 2 * ROWS * WIDTH),
    ]


def test_the_backward_pass_of_a_softmax_makes_a_product_first():
    operators, peak = made(
        lambda grad, out: torch.ops.aten._softmax_backward_data(grad, out, -1, torch.float32),
        *[(ROWS, WIDTH)] * 2,
        dtype=torch.float32,
    )
    assert operators == [("mul", 4 * ROWS * WIDTH), ("_softmax_backward_data", 4 * ROWS * WIDTH)]
    assert peak == 2 * 4 * ROWS * WIDTH


def embedding_peak(tokens: int) -> tuple[int, int]:
    """What the backward pass of an embedding of 8,192 words makes first, and the most that is alive."""

    def backward(grad):
        return torch.ops.aten.embedding_dense_backward(grad, torch.empty(tokens, dtype=torch.int64), 8192, -1, False)

    operators, peak = made(backward, (tokens, WIDTH))
    return operators[1][1], peak


def test_the_gradient_of_an_embedding_is_summed_in_float32_by_tens_of_rows():
    gradient, peak = embedding_peak(3072)
    assert (gradient, peak) == (2 * 8192 * WIDTH, 2 * 8192 * WIDTH + 8 * 3072)
    gradient, peak = embedding_peak(4096)
    partial = 4096 // 10 + 4096
    assert peak == pytest.approx(gradient + 4 * partial * WIDTH + 8 * (6 * 4096 + partial), abs=1024)


def test_a_long_row_is_sorted_by_way_of_a_second_copy_of_it_and_its_positions():
    tokens = 8192

    def most(length):
        operators, peak = made(lambda x: torch.sort(x), (length,), dtype=torch.int64)
        return peak - sum(size for name, size in operators if name == "sort")

    assert most(tokens) == 8 * tokens + 16 * tokens
    assert most(4096) == 0


def test_gradients_of_rows_that_were_picked_are_added_by_sorted_places():
    picked = 8192

    def backward(x):
        rows = torch.zeros(picked, dtype=torch.int64)
        return torch.autograd.grad(x[rows].sum(), x)

    operators, _ = made(backward, (ROWS, WIDTH), learns=True)
    assert [size for name, size in operators if name == "empty"][-5:] == [8 * picked] * 4 + [16 * picked]


def test_a_norm_of_many_tensors_takes_a_sum_for_each_chunk_of_the_largest():
    operators, _ = made(lambda x, y: torch._foreach_norm([x, y]), (65536 * 3,), (8,))
    assert operators[0] == ("empty", 4 * 2 * 3)


def test_autocast_runs_in_float32_what_it_does_on_cuda():
    with torch.autocast("cpu", torch.bfloat16):
        operators, _ = made(lambda x: functional.softmax(x, -1), (ROWS, WIDTH))
    assert operators == [("_to_copy", 4 * ROWS * WIDTH), ("_softmax", 4 * ROWS * WIDTH)]


@pytest.mark.parametrize(
    ("kernel", "forward"),
    [
        # The result and a float32 sum a row; the memory-efficient kernel pads rows of sums to 32.
        ("flash", {2 * 4 * ROWS * 32, 4 * 4 * ROWS}),
        ("efficient", {2 * 4 * ROWS * 32, 4 * 4 * ROWS}),
    ],
)
def test_fused_attention_makes_no_scores(kernel, forward):
    heads = [(1, 4, ROWS, 32)] * 3
    operators, _ = made(lambda q, k, v: FusedAttention(kernel)(q, k, v, is_causal=True), *heads, learns=True)
    large = {size for _, size in operators if size > 64}
    assert large == forward


def test_attention_by_hand_makes_scores_in_float32():
    heads = [(1, 4, ROWS, 32)] * 3
    operators, _ = made(lambda q, k, v: FusedAttention("math")(q, k, v), *heads)
    assert max(size for _, size in operators) == 4 * 4 * ROWS * ROWS


def test_log_probabilities_of_labels_are_one_kernel_that_keeps_the_logits():
    logits, labels = (2, ROWS, WIDTH), torch.long

    def picked(x):
        return selective_log_softmax(x, torch.empty((2, ROWS), dtype=labels)).sum()

    operators, peak = made(picked, logits, dtype=torch.float32)
    rows = 4 * 2 * ROWS
    # Labels, and four numbers a row: log-probability, entropy, log-sum-exp and the logit that is expected.
    assert operators == [("empty", 2 * rows), *[("empty", rows)] * 4, ("sum", 4)]
    assert peak == 2 * rows + 4 * rows


def test_everything_is_a_cpu_again_afterwards():
    before = functional.dropout, functional.scaled_dot_product_attention, torch.is_autocast_enabled
    with pytest.raises(KeyboardInterrupt), as_on_gpu(LORA):
        raise KeyboardInterrupt
    assert before == (functional.dropout, functional.scaled_dot_product_attention, torch.is_autocast_enabled)
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.softmax(torch.ones(2, 2, dtype=torch.bfloat16), -1).dtype == torch.bfloat16
