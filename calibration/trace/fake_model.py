"""A model as the trainer builds it, but of fake tensors: every shape and dtype, and not one weight."""

import copy
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import PeftModel
from peft.tuners.lora import dora
from peft.tuners.shira import config as shira_config
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.quantizers import AutoHfQuantizer

from calibration.trace.repeated_layers import Stack
from planner.config.run_config import RunConfig
from planner.step.step_spec import StepSpec
from trainer.model.build import empty_model, quantization_config, wrap_with_adapter

NESTED_BLOCK = 256
"""Block constants that share one constant when they are quantized again (bitsandbytes `quantize_4bit`)."""


def meta_model(config: RunConfig, architecture: PreTrainedConfig, whole: bool) -> tuple[PreTrainedModel, list[Stack]]:
    """The base model on the meta device, quantized if the run says so; unless `whole`, with few of its equal layers."""
    architecture = copy.deepcopy(architecture)
    if config.objective == "reward":
        # The one output is the score.
        architecture.num_labels = 1
    with torch.device("meta"):
        model = empty_model(config, architecture)
        if getattr(architecture, "scale_decoder_outputs", architecture.model_type != "mt5") is False:
            _untie(model)
    # Without checkpoints nothing asks for the gradient of the embedding's output, so the first layer makes none.
    first_differs = config.method != "full" and not config.gradient_checkpointing
    gathers = config.parallel is not None and config.parallel.partitions_weights
    stacks = [] if whole else shorten(model, first_differs, reach=2 if gathers else 1)
    quantization = quantization_config(config)
    if quantization is not None:
        quantizer = AutoHfQuantizer.from_config(quantization)
        with torch.device("meta"):
            quantizer.preprocess_model(model=model, device_map={"": "cpu"})
        model.is_quantized = True
        # By this PEFT knows which of its layers to put around those of bitsandbytes.
        model.is_loaded_in_4bit, model.is_loaded_in_8bit = quantization.load_in_4bit, quantization.load_in_8bit
        model.hf_quantizer = quantizer
    return model, stacks


def _untie(model: PreTrainedModel) -> None:
    """Give the head weights of its own, as the checkpoint has that the configuration was written for.

    T5's configuration says of all models that they are tied, and keeps what a file said in `scale_decoder_outputs`;
    mT5's forgets it, and no published mT5 is tied (Transformers 5.23 `configuration_t5.py`, `configuration_mt5.py`).
    What loads such a checkpoint finds two tensors, and leaves them two.
    """
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(torch.empty_like(head.weight))


def wrapped(model: PreTrainedModel, config: RunConfig) -> PreTrainedModel | PeftModel:
    """`model` with the adapter of the run, still on the meta device."""
    with (
        # DoRA looks at the norms of weights, of copies if they are packed; on the meta device they are not yet.
        patch.object(dora, "deepcopy", lambda layer: layer),
        patch.object(dora, "dequantize_module_weight", _unpacked),
        # SHiRA draws places by chance, and asks where they are; it says beforehand how many.
        patch.object(shira_config, "random_mask", _places),
        patch.object(torch, "where", _where(torch.where)),
    ):
        return wrap_with_adapter(model, config, low_cpu_mem_usage=True)


class Places:
    """Some places of a matrix, of which only the number is known."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> "Places":  # type: ignore[override]
        """The same places: those where a mask is true."""
        return self

    __hash__ = None  # type: ignore[assignment]


def _places(layer: nn.Module, r: int, **_: object) -> Places:
    """As many as two factors of rank `r` have elements (peft `tuners/shira/mask_functions.py`, `random_mask`)."""
    return Places(r * (layer.in_features + layer.out_features))


def _where(where: Callable[..., Any]) -> Callable[..., Any]:
    """torch.where, also of `Places`: their rows and columns."""

    def find(condition: object, *others: object) -> Any:  # noqa: ANN401
        if isinstance(condition, Places):
            return tuple(torch.empty(condition.number, dtype=torch.int64, device="meta") for _ in range(2))
        return where(condition, *others)

    return find


def _unpacked(layer: nn.Module) -> torch.Tensor:
    """The weight that a layer has, or would have if it were not packed."""
    weight: torch.Tensor = layer.weight
    return torch.empty(weight.shape, dtype=getattr(layer, "compute_dtype", None) or weight.dtype, device="meta")


def layer_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Lists of the layers that gradient checkpointing knows, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and isinstance(module[0], GradientCheckpointingLayer)
    }


def shorten(model: PreTrainedModel, first_differs: bool = False, reach: int = 1) -> list[Stack]:
    """Leave layers out of `model` that are like others: of each period of equal layers, three are kept.

    The first and the last of them border on something else; the one between stands for those that are left out. One
    more is kept where the first does not do what the others do, and one at each end where layers have to do with the
    ones `reach` away, as those that are gathered ahead.
    """
    stacks = []
    for path, layers in layer_lists(model).items():
        kinds = [_kind(layer) for layer in layers]
        prefix, period = _pattern(kinds)
        spare = max(0, (len(kinds) - prefix) // period - (2 * reach + 1) - first_differs)
        if spare == 0:
            continue
        kept = len(kinds) - spare * period
        del layers[kept:]
        stacks.append(Stack(path, spare, kept - (reach + 1) * period, period))
        _shorten_config(model, len(kinds), kept)
    return stacks


def _kind(layer: nn.Module) -> tuple[object, ...]:
    """What makes two layers equal: their modules, shapes, and settings that are plain values."""
    settings = tuple(
        sorted(
            (path, name, str(value))
            for path, module in layer.named_modules()
            for name, value in vars(module).items()
            if name != "layer_idx" and isinstance(value, (bool, int, float, str, type(None)))
        )
    )
    shapes = tuple((name, tuple(p.shape), p.dtype) for name, p in layer.named_parameters())
    return type(layer), shapes, settings


def _pattern(kinds: list[tuple[object, ...]]) -> tuple[int, int]:
    """How many layers come first that differ, and after how many the rest repeats itself."""
    candidates = (
        (prefix, period)
        for prefix in range(min(len(kinds), 4))
        for period in range(1, len(kinds) - prefix + 1)
        if all(kinds[at] == kinds[at + period] for at in range(prefix, len(kinds) - period))
    )
    return min(candidates, key=lambda pattern: pattern[0] + 3 * pattern[1])


def _shorten_config(model: PreTrainedModel, before: int, kept: int) -> None:
    """Make the configuration of every part of the model agree with a list of `kept` layers instead of `before`."""
    seen = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    for config in seen.values():
        if getattr(config, "num_hidden_layers", None) == before:
            config.num_hidden_layers = kept
        for name, value in vars(config).items():
            if isinstance(value, list) and len(value) == before:
                setattr(config, name, value[:kept])


def to_fake(model: nn.Module, step: StepSpec) -> None:
    """Give each parameter and buffer of a model on the meta device a fake tensor; to be called in a fake mode.

    Quantized weights get the form that bitsandbytes packs them into. Adapters get the step's dtype, and with a k-bit
    upcast everything else that is not quantized becomes float32 (PEFT `prepare_model_for_kbit_training`), of which TRL
    once left only the norms in float32 (`peft_module_casting_to_bf16`).
    """
    faked: dict[int, nn.Parameter] = {}
    adapts = isinstance(model, PeftModel)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in faked:
                dtype = _dtype(parameter, step, adapts, is_norm="norm" in type(module).__name__.lower())
                data = torch.empty(parameter.shape, dtype=dtype)
                faked[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
            module._parameters[name] = faked[id(parameter)]
        if isinstance(module, Linear4bit):
            _pack_4bit(module, step)
        elif isinstance(module, Linear8bitLt):
            _pack_8bit(module)
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        _fake_apart(module)


def _fake_apart(module: nn.Module) -> None:
    """Give fake tensors to what a module holds beside its parameters and buffers."""
    for name, value in list(vars(module).items()):
        if isinstance(value, torch.Tensor) and value.device.type == "meta":
            setattr(module, name, torch.empty(value.shape, dtype=value.dtype))
    for held in held_apart(module).values():
        for name, value in held.items():
            held[name] = torch.empty(value.shape, dtype=value.dtype)


def held_apart(module: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors that a layer of PEFT has by adapter, beside its parameters and buffers, as SHiRA its places."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, dict) and value and all(isinstance(one, torch.Tensor) for one in value.values())
        if name not in ("_parameters", "_buffers")
    }


def _dtype(parameter: nn.Parameter, step: StepSpec, adapts: bool, is_norm: bool) -> torch.dtype:
    if not parameter.is_floating_point():
        return parameter.dtype
    if adapts and parameter.requires_grad:
        assert step.adapter is not None
        return getattr(torch, step.adapter.dtype)
    upcast = step.kbit_upcast or (step.float32_norms and is_norm)
    return torch.float32 if upcast else parameter.dtype


def _pack_4bit(layer: Linear4bit, step: StepSpec) -> None:
    """The packed weight and its state, as `Params4bit` has them after quantization."""
    shape = torch.Size((layer.out_features, layer.in_features))
    storage = getattr(torch, step.weight_dtype) if step.weight_shards > 1 else torch.uint8
    packed = nn.Parameter(
        torch.empty((-(-shape.numel() // (2 * storage.itemsize)), 1), dtype=storage), requires_grad=False
    )
    block = 64
    blocks = -(-shape.numel() // block)
    parts = {"shape": shape, "blocksize": block, "quant_type": step.quantization, "dtype": layer.compute_dtype}
    code = torch.empty(16)
    if step.double_quant:
        constants = torch.empty(-(-blocks // NESTED_BLOCK))
        nested = QuantState(absmax=constants, blocksize=NESTED_BLOCK, code=torch.empty(256), dtype=torch.float32)
        state = QuantState(
            absmax=torch.empty(blocks, dtype=torch.uint8), code=code, offset=torch.empty(()), state2=nested, **parts
        )
    else:
        state = QuantState(absmax=torch.empty(blocks), code=code, **parts)
    packed.quant_state = state
    packed.compress_statistics, packed.quant_type = step.double_quant, step.quantization
    packed.quant_storage, packed.blocksize, packed.bnb_quantized = storage, block, True
    packed.__class__ = Params4bit
    layer.weight, layer.quant_state = packed, state


def _pack_8bit(layer: Linear8bitLt) -> None:
    """The weight in 8 bit and a constant for each row, as `Int8Params` has them after quantization."""
    weight = nn.Parameter(torch.empty((layer.out_features, layer.in_features), dtype=torch.int8), requires_grad=False)
    weight.CB, weight.SCB, weight.has_fp16_weights = weight.data, torch.empty(layer.out_features), False
    weight.__class__ = Int8Params
    layer.weight = weight


class Params4bit(FakeTensor):  # type: ignore[misc]
    """A packed fake weight; PEFT knows the ones of bitsandbytes by this name."""


class Int8Params(FakeTensor):  # type: ignore[misc]
    """A fake weight in 8 bit; PEFT knows the ones of bitsandbytes by this name."""


def quantization_constants(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors beside packed weights, by a name that says whose they are."""
    constants: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        if isinstance(module, Linear4bit):
            state = module.quant_state
            nested = state.state2
            parts = {"absmax": state.absmax, "code": state.code, "offset": state.offset}
            parts |= {"nested absmax": nested.absmax, "nested code": nested.code} if nested else {}
        elif isinstance(module, Linear8bitLt):
            parts = {"SCB": module.weight.SCB}
        else:
            continue
        constants |= {f"{path}.weight {name}": part for name, part in parts.items() if part is not None}
    return constants
