"""Attention as a GPU runs it: torch's CUDA kernels on fake tensors, with the memory that they take while they run.

Sources: torch 2.13 `aten/src/ATen/native/transformers/attention.cpp` (`scaled_dot_product_attention`,
`_scaled_dot_product_attention_math`), `cuda/attention_backward.cu`, `cuda/flash_attn/flash_api.cpp` (`mha_bwd`),
`cuda/mem_eff_attention/kernel_backward.h`.
"""

from typing import Any

import torch

from planner.step.step_spec import AttentionKernel

aten = torch.ops.aten

FLASH_HEAD_MULTIPLE = 32
FLASH_ROW_MULTIPLE = 128
EFFICIENT_MASK_MULTIPLE = {2: 8, 4: 4}
"""The memory-efficient kernel reads masks in rows of 16 bytes (`pad_bias`), by bytes of an element."""


class FusedAttention:
    """`torch.nn.functional.scaled_dot_product_attention` as it runs on a GPU when `kernel` is chosen."""

    def __init__(self, kernel: AttentionKernel) -> None:
        self._kernel = kernel

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """Heads of shape (batch, heads, rows, value_head_dim)."""
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            query, key, value = (x.to(dtype) for x in (query, key, value))
        mask = None if attn_mask is None else _additive(attn_mask, query.dtype)
        if self._kernel == "math":
            return _math(query, key, value, mask, dropout_p, is_causal, scale, enable_gqa)
        if self._kernel == "flash" and mask is None and query.shape[-1] == value.shape[-1]:
            out: torch.Tensor = aten._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, scale=scale
            )[0]
            return out
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        if mask is not None:
            mask = _aligned(mask).expand(*query.shape[:-1], key.shape[-2])
        efficient: torch.Tensor = aten._scaled_dot_product_efficient_attention(
            query, key, value, mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
        )[0]
        return efficient


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask of booleans as numbers to add (`convert_boolean_attn_mask`)."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask.logical_not(), float("-inf"))


def _aligned(mask: torch.Tensor) -> torch.Tensor:
    multiple = EFFICIENT_MASK_MULTIPLE[mask.element_size()]
    missing = -mask.shape[-1] % multiple
    return torch.nn.functional.pad(mask, (0, missing))[..., : mask.shape[-1]] if missing else mask


def _math(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> torch.Tensor:
    """Torch's own composition, the same on all devices, in float32 throughout for 16-bit inputs.

    Attention as a whole is cast by autocast, which leaves its parts alone (aten `autocast_mode.h`, `WrapFunction_`).
    """
    with torch.autocast("cpu", enabled=False):
        out: torch.Tensor = aten._scaled_dot_product_attention_math(
            query, key, value, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]
    return out


def flash_backward(grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *rest: Any, **options: Any) -> object:  # noqa: ANN401
    """The flash kernel's backward pass: float32 sums of the query's gradient, and gradients of keys and values for each
    query head where heads share them.
    """
    batch, heads, rows, width = query.shape
    padded_rows = -(-rows // FLASH_ROW_MULTIPLE) * FLASH_ROW_MULTIPLE
    padded_width = -(-width // FLASH_HEAD_MULTIPLE) * FLASH_HEAD_MULTIPLE
    row_sums = torch.empty((batch, heads, padded_rows), dtype=torch.float32)
    query_sums = torch.empty((batch, padded_rows, heads, padded_width), dtype=torch.float32)
    expanded = []
    if key.shape[1] != heads:
        expanded = [torch.empty((batch, key.shape[2], heads, width), dtype=key.dtype) for _ in range(2)]
    result = aten._scaled_dot_product_flash_attention_backward.default(grad, query, key, *rest, **options)
    del row_sums, query_sums, expanded
    return result


def efficient_backward(grad: torch.Tensor, query: torch.Tensor, *rest: Any, **options: Any) -> object:  # noqa: ANN401
    """The memory-efficient kernel's backward pass: float32 sums of the query's gradient for 16-bit inputs."""
    sums = torch.empty(query.shape, dtype=torch.float32) if query.element_size() < 4 else None
    result = aten._scaled_dot_product_efficient_attention_backward.default(grad, query, *rest, **options)
    del sums
    return result
