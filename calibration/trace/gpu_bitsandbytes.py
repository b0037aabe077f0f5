"""What bitsandbytes' CUDA kernels allocate, on fake tensors (bitsandbytes 0.50 `backends/cuda/ops.py`)."""

import contextlib
from collections.abc import Iterator
from unittest.mock import patch

import torch
from bitsandbytes.optim.optimizer import Optimizer8bit

from calibration.trace.recorder import Kernel, Recorder
from profiles.optimizer import OptimizerProfile

bitsandbytes = torch.ops.bitsandbytes


def gemm_4bit(
    x: torch.Tensor,
    packed: torch.Tensor,
    shape: list[int],
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    *_: object,
) -> torch.Tensor:
    """The weight and its constants are dequantized first (`_dequant_linear_fallback`).

    In products of few rows a fused kernel takes less.
    """
    constants = (
        [torch.empty_like(absmax_8bit, dtype=torch.float32) for _ in range(2)] if absmax_8bit is not None else []
    )
    weight = torch.empty(shape, dtype=x.dtype)
    result = torch.nn.functional.linear(x, weight, bias)
    del constants, weight
    return result


def int8_vectorwise_quant(x: torch.Tensor, threshold: float = 0.0) -> tuple[torch.Tensor, ...]:
    """Rows in 8 bit with a constant each, after a look for outliers; here there are none."""
    constants = torch.empty(x.numel() // x.shape[-1], dtype=torch.float32)
    rows = torch.empty(x.shape, dtype=torch.int8)
    if threshold > 0:
        outliers = x.abs() >= threshold
        del outliers
    return rows, constants, torch.empty(0, dtype=torch.int64)


def int8_mixed_scaled_mm(
    x: torch.Tensor,
    rows: torch.Tensor,
    weight: torch.Tensor,
    row_constants: torch.Tensor,
    column_constants: torch.Tensor,
    outlier_columns: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A product without outliers: sums in int32, then float16, then the dtype of the input."""
    none = torch.empty(0, dtype=x.dtype)
    sums = torch.empty((rows.shape[0], weight.shape[0]), dtype=torch.int32)
    result = torch.empty_like(sums, dtype=torch.float16)
    return result.to(x.dtype), none


@contextlib.contextmanager
def paged_states(optimizer: OptimizerProfile, recorder: Recorder) -> Iterator[None]:
    """Let large states of a paged optimizer be in managed memory, of which the allocator knows nothing.

    The driver has them on the card while there is room, and in main memory where there is not (`cudaMallocManaged`).
    """
    makes = Optimizer8bit.get_state_buffer

    def make(self: Optimizer8bit, parameter: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        if not optimizer.is_paged(parameter.numel()):
            return makes(self, parameter, dtype)
        with recorder.unseen():
            state: torch.Tensor = makes(self, parameter, dtype)
        state.in_managed_memory = True
        return state

    with patch.object(Optimizer8bit, "get_state_buffer", make):
        yield


BITSANDBYTES_KERNELS: dict[object, Kernel] = {
    bitsandbytes.gemm_4bit.default: gemm_4bit,
    bitsandbytes.int8_vectorwise_quant.default: int8_vectorwise_quant,
    bitsandbytes.int8_mixed_scaled_mm.default: int8_mixed_scaled_mm,
}
