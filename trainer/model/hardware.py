"""What the card cannot do, refused before the run or worked around in its process."""

import platform
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.integrations import sdpa_attention

from planner.config.run_config import RunConfig
from profiles.capabilities import capabilities
from profiles.errors import ConfigError, EnvironmentFault
from profiles.fp16_overflow import fp16_overflow_source

ComputeCapability = tuple[int, int]

WRITES_INTO_BASE = frozenset({"C3A", "GRALORA"})
"""Methods that add to the output of the base in place (peft 0.21.2: `layer.py` of both)."""

# CUDA 13 builds of torch begin at 7.5; the CUDA 12.6 wheels, last with older ones, end at torch 2.14 (pytorch#172352).
OLD_CARD_INSTALL = "pip install 'torch<2.15' --index-url https://download.pytorch.org/whl/cu126"
INSTALL = "pip install --upgrade torch"


def check_config(config: RunConfig, capability: ComputeCapability | None) -> None:
    """Refuse number formats that a card of this compute capability (None: a CPU) does not have.

    Raises ConfigError.
    """
    if capability is None:
        if config.checkpoint_offload:
            raise ConfigError("checkpoint_offload has no effect on a CPU", hint="set it to false")
        if config.mixed_precision == "fp16" or config.dtype == "float16":
            raise ConfigError(
                "a CPU cannot train in float16", hint="use dtype bfloat16 with mixed_precision bf16, or float32 with no"
            )
        return
    if config.optim.startswith("paged_") and "microsoft" in platform.release().lower():
        raise ConfigError(
            f"optim is {config.optim}, but under WSL the driver does not page memory (bitsandbytes#726)",
            hint=f"use optim {config.optim.removeprefix('paged_')}",
        )
    card = f"compute capability {capability[0]}.{capability[1]}"
    # torch.cuda.is_bf16_supported() is no help: it is true where bfloat16 is only emulated.
    if "bf16" in (config.mixed_precision, _short(config.dtype)) and not capabilities().bf16.met_by(capability, None):
        raise ConfigError(
            f"bfloat16 needs compute capability 8.0, but this card has {card}",
            hint="use dtype float16 with mixed_precision fp16",
        )
    if needs_kernels_of_bitsandbytes(config) and not capabilities().bnb_4bit.met_by(capability, None):
        raise ConfigError(
            f"bitsandbytes has kernels from compute capability 6.0 on, but this card has {card}",
            hint="use method lora with an optimizer of torch, such as adamw_torch_fused",
        )
    if config.quantization == "int8" and not capabilities().int8.met_by(capability, None):
        raise ConfigError(f"int8 needs compute capability 7.5, but this card has {card}", hint="use quantization nf4")
    if config.attn_implementation == "flash_attention_2" and not capabilities().flash_attention.met_by(
        capability, None
    ):
        raise ConfigError(
            f"flash_attention_2 needs compute capability 8.0, but this card has {card}",
            hint="use attn_implementation sdpa",
        )


def needs_kernels_of_bitsandbytes(config: RunConfig) -> bool:
    """Whether the base is quantized, or the optimizer's states are."""
    return config.quantization is not None or "8bit" in config.optim


def check_attention(config: RunConfig, architecture: PreTrainedConfig) -> None:
    """Refuse torch's fused attention for a model that bounds its attention scores. Raises ConfigError."""
    bounds = getattr(architecture.get_text_config(), "attn_logit_softcapping", None) is not None
    if bounds and config.attn_implementation == "sdpa":
        raise ConfigError(
            f"attn_implementation is sdpa, but {config.model} bounds its attention scores, which sdpa cannot",
            hint="use eager, or flash_attention_2 on a card of compute capability 8.0",
        )


def check_model_type(config: RunConfig, model_type: str) -> None:
    """Refuse fp16 for a model that is known to overflow in it. Raises ConfigError."""
    source = fp16_overflow_source(model_type)
    if source is not None and config.mixed_precision == "fp16":
        raise ConfigError(
            f"{config.model} is a {model_type} model, which overflows in float16 ({source})",
            hint="use dtype float32 with mixed_precision no, or a card with bfloat16",
        )


def check_kernels(archs: Sequence[str], capability: ComputeCapability, card: str) -> None:
    """Refuse a build of torch whose kernels, `archs` as torch.cuda.get_arch_list() gives them, leave this card out.

    Raises EnvironmentFault with the command that installs a build that has them.
    """
    if any(_runs_on(arch, capability) for arch in archs):
        return
    turing_or_later = capability >= (7, 5)
    raise EnvironmentFault(
        f"torch {torch.__version__} has no kernels for the {card}, compute capability {capability[0]}.{capability[1]}; "
        f"it has {', '.join(archs) or 'none'}",
        hint=INSTALL if turing_or_later else OLD_CARD_INSTALL,
    )


def cast_trainable_to_float32(model: nn.Module) -> None:
    """Make every trainable floating-point weight float32, in place.

    TRL casts the adapters of a quantized model to bfloat16, which loses small updates and which CUDA's gradient scaler
    cannot unscale on a card that trains in fp16. To be called after the TRL trainer is made and before it trains.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.float()


def keep_packed_weights(model: nn.Module) -> None:
    """Let an evaluation on a CPU leave 4-bit weights as they are.

    With AVX-512 for bfloat16, bitsandbytes packs them anew for each evaluation and back for training, and rounds their
    block constants to bfloat16 on the way (0.50 `functional._convert_weight_packed_for_cpu`): the base would change.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def return_copies(model: nn.Module) -> None:
    """Let int8 layers return tensors that may be written into, which takes a copy of each.

    On a GPU bitsandbytes returns a view that its own autograd function made (0.50 `MatMul8bitLt.forward`), and autograd
    lets nobody change such a view; a CPU has another function.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt" and type(module).__module__.startswith("bitsandbytes"):
            module.register_forward_hook(lambda _module, _inputs, output: output.clone())


def expand_shared_heads(capability: ComputeCapability) -> None:
    """Make Transformers repeat shared key and value heads before torch's attention, on cards older than Ampere.

    Torch has no fused kernel for grouped queries there: it would silently build all attention scores
    (transformers#48633). The repeated heads cost less.
    """
    if not capabilities().flash_attention.met_by(capability, None):
        sdpa_attention.use_gqa_in_sdpa = _never


def _never(*_: object) -> bool:
    return False


def _short(dtype: str) -> str:
    return {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[dtype]


def _runs_on(arch: str, capability: ComputeCapability) -> bool:
    """Whether code for `arch` runs on the card: same major version and no newer minor, or PTX of any older one."""
    kind, _, digits = arch.rstrip("af").partition("_")
    built = (int(digits[:-1]), int(digits[-1]))
    return built <= capability and (kind == "compute" or built[0] == capability[0])
