"""Where an operator does on a GPU what it does not do on a CPU: the one place that knows, with the reason for each.

A step is traced on fake tensors of the CPU. While `as_on_gpu` is active, what differs is exchanged for what CUDA does.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch
from bitsandbytes.autograd import _functions as bitsandbytes_functions
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from torch.utils import _foreach_utils
from transformers import masking_utils, modeling_utils
from transformers.integrations import sdpa_attention
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from calibration.trace.gpu_attention import FusedAttention, efficient_backward, flash_backward
from calibration.trace.gpu_bitsandbytes import BITSANDBYTES_KERNELS
from calibration.trace.gpu_indexing import SELECTING_KERNELS, SORTING_SCRATCH, embedding_backward
from calibration.trace.recorder import Kernel, Scratch
from planner.step.step_spec import StepSpec

aten = torch.ops.aten

optimizer_module = importlib.import_module("torch.optim.optimizer")
"""torch.optim hides its submodule behind the class of the same name."""

FLOAT32_UNDER_AUTOCAST = (
    "layer_norm",
    "native_layer_norm",
    "group_norm",
    "softmax.int",
    "log_softmax.int",
    "nll_loss_nd",
    "logsumexp",
    "pow.Tensor_Scalar",
    "pow.Tensor_Tensor",
    "pow.Scalar",
    "rsqrt",
    "reciprocal",
    "exp",
    "log",
    "log1p",
    "softplus",
    "cumsum",
    "sum",
    "sum.dim_IntList",
    "cosine_similarity",
)
"""Operators that autocast runs in float32 on CUDA but leaves alone on a CPU (aten `autocast_mode.h`,
`AT_FORALL_FP32` and `AT_FORALL_FP32_SET_OPT_DTYPE`)."""

FOREACH_CHUNK = 65536
"""Elements that one block of a foreach kernel works on (aten `MultiTensorApply.cuh`)."""


@contextlib.contextmanager
def as_on_gpu(step: StepSpec) -> Iterator[None]:
    """Exchange what differs between a CPU and a GPU for the time of a trace of `step`."""
    in_float16 = "float16" in (step.weight_dtype, step.autocast)
    with contextlib.ExitStack() as stack:
        for target, name, replacement in (
            # Optimizers and the clipping of gradients work on all tensors at once; on CPU tensors, one by one.
            (optimizer_module, "_get_foreach_kernels_supported_devices", lambda: ["cpu"]),
            *(
                (place, "_foreach_supported_types", [*place._foreach_supported_types, FakeTensor])
                for place in (optimizer_module, _foreach_utils)
            ),
            # bitsandbytes trains int8 layers on a CPU with a function of its own.
            (bitsandbytes_functions, "MatMul8bitFp", bitsandbytes_functions.MatMul8bitLt),
            # On a GPU, Triton kernels fold tiles of logits and a product adds to float32 sums without a copy.
            (chunked_logprob, "_forward_tile", _nothing),
            (chunked_logprob, "_backward_tile", _nothing),
            (chunked_logprob, "_addmm_fp32", _nothing),
            # So does one for log-probabilities of labels; without it they come from a loop over rows.
            (trl_utils, "is_triton_available", lambda: True),
            (trl_utils, "_supports_trl_loss_kernel", lambda *_: True),
            (trl_utils, "_fused_logprob_entropy", _log_probabilities),
            # Checkpoints that are kept in host memory are not on the card.
            (modeling_utils, "save_on_cpu", InHostMemory),
            (sdpa_attention, "use_gqa_in_sdpa", _passes_groups(step)),
            (functional, "scaled_dot_product_attention", FusedAttention(step.attention)),
            (functional, "dropout", _dropout),
            # Asked without a device, torch answers for CUDA: PEFT asks so whether it is to cast what adapters read.
            (torch, "is_autocast_enabled", _autocast_enabled(torch.is_autocast_enabled)),
            # From float16, but not from bfloat16, a softmax in float32 needs no copy (aten `SoftMax.cpp`).
            *(
                (place, name, _softmax(getattr(place, name), getattr(aten, f"_{name}")))
                for place in (functional, torch, torch.Tensor)
                for name in ("softmax", "log_softmax")
                if in_float16
            ),
        ):
            # A name that TRL only has where it finds Triton is made.
            stack.enter_context(patch.object(target, name, replacement, create=True))
        stack.enter_context(_cuda_autocast())
        yield


@contextlib.contextmanager
def as_if_real(step: StepSpec) -> Iterator[None]:
    """Let Transformers make or skip the masks of attention as in a run of `step`, and not by their being fake."""
    skips = lambda *_, **__: not step.masked  # noqa: E731
    with (
        patch.object(masking_utils, "is_tracing", lambda *_: False),
        patch.object(masking_utils, "_ignore_causal_mask_sdpa", skips),
    ):
        yield


def kernels(step: StepSpec) -> dict[object, Kernel]:
    """For operators whose CUDA kernel takes more memory than its result: functions that make both.

    On any device, the form of a grouped product is known to torch in bfloat16 only, and that of what a mask selects not
    at all.
    """
    everywhere: dict[object, Kernel] = {
        aten._grouped_mm.default: _grouped_mm,
        **SELECTING_KERNELS,
    }
    if step.device == "cpu":
        return everywhere
    return (
        everywhere
        | {
            aten._softmax_backward_data.default: _softmax_backward,
            aten.native_layer_norm.default: _layer_norm,
            aten.embedding_dense_backward.default: embedding_backward,
            aten._scaled_dot_product_flash_attention_backward.default: flash_backward,
            aten._scaled_dot_product_efficient_attention_backward.default: efficient_backward,
        }
        | BITSANDBYTES_KERNELS
    )


def scratch(step: StepSpec) -> dict[object, Scratch]:
    """For operators whose CUDA kernel is as the CPU's but for memory that it takes while it works: what it takes.

    Looked through and left out: histc of few bins counts in shared memory (`SummaryOps.cu`); scatter, gather and
    index_add add atomically; the sums by parts of layer_norm begin above 65,536 rows (`layer_norm_kernel.cu`). Not
    known: cuDNN's workspaces for convolutions, as in Mamba's layers.
    """
    return {} if step.device == "cpu" else {**SORTING_SCRATCH, aten._foreach_norm.Scalar: _norm_scratch}


def _norm_scratch(tensors: Sequence[torch.Tensor], *_: object) -> list[torch.Tensor]:
    """A float32 sum for each chunk of each tensor, as many as the largest has (`ForeachReduceOp.cu`)."""
    chunks = max(-(-tensor.numel() // FOREACH_CHUNK) for tensor in tensors)
    return [torch.empty(len(tensors) * chunks, dtype=torch.float32)]


def _layer_norm(x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:  # noqa: ANN401
    """Means and deviations are in float32 whatever the input is (`layer_norm_cuda` in aten `layer_norm_kernel.cu`)."""
    out, mean, deviation = aten.native_layer_norm.default(x, *rest)
    return out, torch.empty_like(mean, dtype=torch.float32), torch.empty_like(deviation, dtype=torch.float32)


def _softmax(function: Callable[..., Any], fused: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with 16-bit input that goes to float32 in the kernel `fused`, as it is."""

    def softmax(x: torch.Tensor, dim: int = -1, *rest: Any, **options: Any) -> Any:  # noqa: ANN401
        if options.get("dtype") == torch.float32 and x.dtype in (torch.float16, torch.bfloat16):
            return fused(x, dim, True)
        return function(x, dim, *rest, **options)

    return softmax


def _softmax_backward(grad: torch.Tensor, output: torch.Tensor, *rest: object) -> object:
    """CUDA multiplies gradient and output first (`softmax_backward_cuda_out` in aten `SoftMax.cu`)."""
    product = grad * output
    result = aten._softmax_backward_data.default(grad, output, *rest)
    del product
    return result


def _dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """A fused kernel that keeps a byte for each element; a CPU keeps factors of the input's dtype."""
    if p == 0 or not training:
        return x
    out: torch.Tensor = aten.native_dropout(x, p, training)[0]
    return out


def _autocast_enabled(enabled: Callable[[str], bool]) -> Callable[..., bool]:
    return lambda device_type="cpu": enabled(device_type)


@contextlib.contextmanager
def _cuda_autocast() -> Iterator[None]:
    """Give the CPU's autocast the list of operators that run in float32 on CUDA."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name in FLOAT32_UNDER_AUTOCAST:
            packet, _, overload = name.partition(".")
            library.impl(name, _in_float32(getattr(getattr(aten, packet), overload or "default")), "AutocastCPU")
        yield


def _in_float32(operator: Callable[..., Any]) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def cast(x: object) -> object:
        if isinstance(x, torch.Tensor) and x.dtype in (torch.float16, torch.bfloat16):
            return x.to(torch.float32)
        return x

    def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(*map(cast, args), **{name: cast(x) for name, x in kwargs.items()})

    return run


class _LogProbabilities(torch.autograd.Function):  # type: ignore[misc]
    """TRL's kernel for log-probabilities and entropies (TRL 1.16 `kernels/logprob_entropy.py`).

    It keeps the logits as they are and two numbers a row, and makes a gradient of their shape.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401
        """Both in float32, of the shape of `index`."""
        logprobs, entropy, log_sums, expected = (torch.empty(index.shape, dtype=torch.float32) for _ in range(4))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, index, log_sums, expected)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor | None) -> tuple[torch.Tensor, None]:  # noqa: ANN401
        """The gradient of the logits, laid out row by row."""
        return torch.empty_like(ctx.saved_tensors[0], memory_format=torch.contiguous_format), None


def _log_probabilities(logits: torch.Tensor, index: torch.Tensor, **_: object) -> tuple[torch.Tensor, torch.Tensor]:
    result: tuple[torch.Tensor, torch.Tensor] = _LogProbabilities.apply(logits, index)
    return result


class InHostMemory(torch.autograd.graph.saved_tensors_hooks):  # type: ignore[misc]
    """Stands for torch's `save_on_cpu`: what is saved leaves the card, and comes back when it is asked for."""

    def __init__(self, pin_memory: bool = False, device_type: str = "cuda") -> None:
        super().__init__(
            lambda x: (x.shape, x.dtype, x.requires_grad), lambda form: torch.empty(form[0], dtype=form[1])
        )


def _passes_groups(step: StepSpec) -> Callable[..., bool]:
    """Whether Transformers leaves keys and values in groups; where the step repeats them, it never does."""
    decides = sdpa_attention.use_gqa_in_sdpa
    return (lambda *_: False) if step.expand_kv else decides


def _grouped_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    ends: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Products of groups of rows; `ends` are their ends along the dimension that both have in common."""
    if a.dim() == 2 and b.dim() == 2:
        assert ends is not None
        shape: tuple[int, ...] = (ends.shape[0], a.shape[0], b.shape[1])
    elif a.dim() == 3 and b.dim() == 3:
        shape = (a.shape[0], a.shape[1], b.shape[2])
    else:
        shape = (a.shape[-2], b.shape[-1])
    return torch.empty(shape, dtype=out_dtype or a.dtype)


def _nothing(*_: object, **__: object) -> None:
    """A kernel that makes no tensor."""
