import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.quantization import find_quantization, quantized_bytes

SHAPES = [(4096, 4096), (1000, 1001), (100, 33), (65, 256), (64, 256), (7, 5), (1, 1)]

matrices = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


# QLoRA (https://arxiv.org/abs/2305.14314), section 3: 0.5 bits a parameter for the scales, 0.127 with double
# quantization.
@pytest.mark.parametrize(("double_quant", "bits"), [(False, 4.5), (True, 4.127)])
def test_nf4_takes_the_published_bits_a_parameter(double_quant, bits):
    num_weights = 14336 * 4096
    assert quantized_bytes(num_weights, 14336, "nf4", double_quant) * 8 / num_weights == pytest.approx(bits, abs=1e-3)


def test_int8_takes_a_byte_a_weight_and_a_scale_a_row():
    assert quantized_bytes(300 * 200, 200, "int8", double_quant=False) == 60_000 + 800


def test_double_quantization_does_nothing_to_int8():
    assert quantized_bytes(600, 20, "int8", double_quant=True) == quantized_bytes(600, 20, "int8", double_quant=False)


@given(matrices, st.booleans())
def test_fp4_is_as_large_as_nf4(shape, double_quant):
    rows, columns = shape
    sizes = {quantized_bytes(rows * columns, rows, scheme, double_quant) for scheme in ("nf4", "fp4")}
    assert len(sizes) == 1


@given(matrices)
def test_more_columns_never_cost_less(shape):
    rows, columns = shape
    for scheme in ("nf4", "fp4", "int8"):
        for double_quant in (False, True):
            narrow = quantized_bytes(rows * columns, rows, scheme, double_quant)
            assert narrow <= quantized_bytes(rows * (columns + 1), rows, scheme, double_quant)


def test_only_int8_keeps_the_input_of_a_frozen_layer():
    assert [find_quantization(scheme).saves_input for scheme in ("nf4", "fp4", "int8")] == [False, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_four_bit_weights_are_as_large_as_those_of_bitsandbytes(shape, scheme, double_quant):
    import torch
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(torch.randn(shape), compress_statistics=double_quant, quant_type=scheme)
    tensors = [packed, state.absmax, state.code]
    if state.nested:
        tensors += [state.offset, state.state2.absmax, state.state2.code]
    rows, columns = shape
    assert quantized_bytes(rows * columns, rows, scheme, double_quant) == sum(tensor.nbytes for tensor in tensors)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_weights_are_as_large_as_those_of_bitsandbytes(shape):
    import bitsandbytes

    rows, columns = shape
    layer = bitsandbytes.nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False).to("cpu")
    assert (
        quantized_bytes(rows * columns, rows, "int8", double_quant=False)
        == layer.weight.nbytes + layer.weight.SCB.nbytes
    )
