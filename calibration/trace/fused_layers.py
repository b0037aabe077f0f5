"""The fused layers of fms-acceleration, as torch operators to be traced: what they keep is less than torch does.

Source: github:foundation-model-stack/fms-acceleration, plugins/fused-ops-and-kernels, which are Unsloth's kernels:
`kernels/unsloth/rms_layernorm.py`, `kernels/unsloth/rope_embedding.py`, `fused_ops/unsloth_lora/bnb/fast_lora.py`.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import LoraLayer
from torch import nn

from planner.step.step_spec import StepSpec

ROTATION = "apply_rotary_pos_emb"
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("o_proj",))
"""Layers that are one function where they are quantized and have adapters."""


@contextlib.contextmanager
def fused_layers(model: nn.Module, step: StepSpec) -> Iterator[None]:
    """Let norms, rotary positions and adapters of quantized layers be fused, if `step` has them so."""
    if step.kernels == "torch":
        yield
        return
    modules = list(model.modules())
    for module in modules:
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_norm, module)
        for names in TOGETHER:
            _fuse_adapters([getattr(module, name, None) for name in names])
    with contextlib.ExitStack() as stack:
        for name in {type(module).__module__ for module in modules}:
            if hasattr(sys.modules[name], ROTATION):
                stack.enter_context(patch.object(sys.modules[name], ROTATION, _rotate))
        yield


def _norm(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = FusedRMSNorm.apply(x)
    return out


class FusedRMSNorm(torch.autograd.Function):  # type: ignore[misc]
    """Keeps its input as it is, and one number a row; its weight learns nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """The normed input, in its dtype."""
        out = torch.empty_like(x)
        ctx.save_for_backward(x, torch.empty(x.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """Written over the gradient that comes in."""
        return grad.contiguous()


def _rotate(q: torch.Tensor, k: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
    rotated = (FusedRotary.apply(heads.transpose(1, 2)).transpose(1, 2) for heads in (q, k))
    return next(rotated), next(rotated)


class FusedRotary(torch.autograd.Function):  # type: ignore[misc]
    """Turns heads of shape (batch, rows, heads, head_dim) where they are, and keeps nothing."""

    @staticmethod
    def forward(ctx: Any, heads: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """The same memory."""
        return heads.view_as(heads)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        """Written over the gradient that comes in, if that is contiguous."""
        return grad.contiguous()


def _fuse_adapters(layers: list[Any]) -> None:
    """Let the first of these layers that is called compute all of them, if all are quantized and have adapters."""
    if not all(isinstance(layer, LoraLayer) and isinstance(layer.base_layer, Linear4bit) for layer in layers):
        return
    results: dict[int, torch.Tensor] = {}
    forwards = [layer.base_layer.forward for layer in layers]
    dropouts = [layer.lora_dropout.default for layer in layers]
    weights = [part.default.weight for layer in layers for part in (layer.lora_A, layer.lora_B)]

    def forward(place: int, x: torch.Tensor) -> torch.Tensor:
        if not results:
            results.update(enumerate(FusedAdapters.apply(x, dropouts, forwards, *weights)))
        return results.pop(place)

    for place, layer in enumerate(layers):
        layer.forward = partial(forward, place)


class FusedAdapters(torch.autograd.Function):  # type: ignore[misc]
    """Layers with adapters on one input, of which only the input is kept, and once more after each dropout."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: torch.Tensor,
        dropouts: list[nn.Module],
        forwards: list[Callable[[torch.Tensor], torch.Tensor]],
        *weights: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """What each layer makes of `x`; `weights` are A and B of each."""
        outs, dropped = [], []
        for dropout, base, down, up in zip(dropouts, forwards, weights[::2], weights[1::2], strict=True):
            out = base(x)
            dropped.append(dropout(x))
            out += (dropped[-1] @ down.t().to(x.dtype)) @ up.t().to(x.dtype)
            outs.append(out)
        ctx.save_for_backward(x, *dropped, *weights)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        """The gradient of the input, of several layers written over it, and those of the adapters."""
        x, *saved = ctx.saved_tensors
        dropped, weights = saved[: len(grads)], saved[len(grads) :]
        of_weights: list[torch.Tensor] = []
        of_x = x if len(grads) > 1 else torch.empty_like(x)
        for place, (grad, given, down, up) in enumerate(zip(grads, dropped, weights[::2], weights[1::2], strict=True)):
            of_weights += [torch.empty_like(down), torch.empty_like(up)]
            dequantized = torch.empty((grad.shape[-1], x.shape[-1]), dtype=x.dtype)
            if place:
                of_x += grad @ dequantized
            del dequantized
            of_x += (given != 0) * (grad @ up.to(x.dtype) @ down.to(x.dtype))
        return of_x, None, None, *of_weights
