"""Looking up, selecting and sorting as CUDA does it, on fake tensors.

Sources: torch 2.13 `aten/src/ATen/native/cuda`: `Embedding.cu`, `EmbeddingBackwardKernel.cu`, `Indexing.cu`
(`index_put_with_sort_kernel`), `SortStable.cu` (`segmented_sort_large_segments`); cub `DeviceRadixSort::SortPairs`.
"""

from collections.abc import Sequence
from typing import Any

import torch

from calibration.trace.recorder import Kernel, Scratch

aten = torch.ops.aten

EMBEDDING_TOKENS_AT_ONCE = 3072
EMBEDDING_ROWS_A_SUM = 10
"""Both in aten: `Embedding.cu`, and NROWS_PER_THREAD in `EmbeddingBackwardKernel.cu`."""

SORTED_IN_PLACE = 4096
"""Elements of a row that one block sorts without memory of its own (`Sort.cpp`)."""


def embedding_backward(grad: torch.Tensor, indices: torch.Tensor, num_weights: int, *rest: Any) -> torch.Tensor:  # noqa: ANN401
    """Above 3,072 tokens, which one kernel adds up by itself, they are sorted, and runs of ten rows of one token are
    added up in float32 before they come to the gradient (`embedding_dense_backward_cuda` in aten `Embedding.cu`,
    `embedding_backward_cuda_kernel` in `EmbeddingBackwardKernel.cu`).
    """
    tokens, width = indices.numel(), grad.shape[-1]
    result: torch.Tensor = aten.embedding_dense_backward.default(grad, indices, num_weights, *rest)
    if tokens > EMBEDDING_TOKENS_AT_ONCE:
        segments = min(tokens, num_weights)
        partial = tokens // EMBEDDING_ROWS_A_SUM + segments
        order = [
            torch.empty(size, dtype=torch.int64) for size in (tokens, tokens, segments, segments, segments, partial)
        ]
        sums = torch.empty((partial, width), dtype=torch.float32)
        del order, sums
    return result


def _nonzero(mask: torch.Tensor) -> torch.Tensor:
    """Positions of shape (elements, dimensions), as if all counted: in the longest batch next to all do."""
    return torch.empty((mask.numel(), mask.dim()), dtype=torch.int64)


def _index(x: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """A mask selects by the positions at which it is true (`expandTensors` in aten `IndexingUtils.h`)."""
    positions: list[torch.Tensor | None] = []
    for index in indices:
        masks = index is not None and index.dtype == torch.bool
        positions.extend(aten.nonzero.default(index).unbind(1) if masks else [index])
    selected: torch.Tensor = aten.index.Tensor(x, positions)
    return selected


def _masked_select(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """All that the mask covers, in one row, by their positions (aten `masked_select_out_cuda_impl`)."""
    x, mask = torch.broadcast_tensors(x, mask)
    return _index(x, [mask])


def _sort_scratch(x: torch.Tensor, *_: object, **__: object) -> list[torch.Tensor]:
    """Positions to begin from, and cub's second copies of keys and positions; many short rows are not asked for."""
    if x.dim() != 1 or x.numel() <= SORTED_IN_PLACE:
        return []
    return [torch.empty_like(x, dtype=torch.int64), torch.empty(x.numel() * (x.element_size() + 8), dtype=torch.uint8)]


def _index_put_scratch(
    x: torch.Tensor,
    indices: Sequence[torch.Tensor | None],
    values: torch.Tensor,
    accumulate: bool = False,
    *_: object,
) -> list[torch.Tensor]:
    """To add up what goes to one place, places are sorted: places, positions, both sorted, and cub's second copies."""
    given = [index for index in indices if index is not None]
    if not accumulate or any(index.dtype == torch.bool for index in given):
        return []
    places = torch.broadcast_shapes(*(index.shape for index in given)).numel()
    return [torch.empty(parts * places, dtype=torch.int64) for parts in (1, 1, 1, 1, 2)]


def _sparse_mask(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What a matrix has at the places of a sparse one."""
    values = torch.empty(mask._values().shape, dtype=x.dtype)
    return torch.sparse_coo_tensor(mask._indices(), values, mask.shape, check_invariants=False)


SELECTING_KERNELS: dict[object, Kernel] = {
    aten.nonzero.default: _nonzero,
    aten.index.Tensor: _index,
    aten.masked_select.default: _masked_select,
    aten.sparse_mask.default: _sparse_mask,
}
"""Operators whose form torch does not know, on any device."""

SORTING_SCRATCH: dict[object, Scratch] = {
    aten.sort.default: _sort_scratch,
    aten.index_put.default: _index_put_scratch,
    aten.index_put_.default: _index_put_scratch,
    aten._index_put_impl_.default: _index_put_scratch,
}
