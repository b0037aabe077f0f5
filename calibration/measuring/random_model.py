"""The model of a run with random weights, made where it trains: no file, no download."""

import torch
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import AutoHfQuantizer

from calibration.trace.model_config import transformers_config
from planner.config.run_config import RunConfig
from profiles.model import ModelProfile
from trainer.model.build import DTYPES, empty_model, quantization_config, wrap_with_adapter


def random_model(model: ModelProfile, config: RunConfig, device: torch.device) -> PreTrainedModel:
    """`model` as the trainer would have loaded it for `config`, without an adapter.

    The base is made in the dtype of the run as a whole; then its Linear weights are quantized by bitsandbytes.
    """
    architecture = transformers_config(model)
    if config.objective == "reward":
        architecture.num_labels = 1
    with torch.device(device):
        base = empty_model(config, architecture)
    if config.quantization is not None:
        _quantize(base, config, device)
    base.hf_device_map = {"": device}
    return base


def with_adapter(base: PreTrainedModel, config: RunConfig) -> PreTrainedModel | PeftModel:
    """`base` with the adapter of the run, as the trainer puts it there."""
    return wrap_with_adapter(base, config)


def _quantize(model: PreTrainedModel, config: RunConfig, device: torch.device) -> None:
    """Put bitsandbytes' layers in place of the Linear ones, and quantize new random weights one by one."""
    quantizer = AutoHfQuantizer.from_config(quantization_config(config))
    quantizer.preprocess_model(model=model, device_map={"": device})
    for module in model.modules():
        if isinstance(module, (Linear4bit, Linear8bitLt)):
            _fill(module, DTYPES[config.dtype], device)
    model.hf_quantizer = quantizer
    quantizer.postprocess_model(model)


def _fill(layer: Linear4bit | Linear8bitLt, dtype: torch.dtype, device: torch.device) -> None:
    weight = torch.randn(layer.out_features, layer.in_features, dtype=dtype, device=device) * layer.in_features**-0.5
    if isinstance(layer, Linear4bit):
        layer.weight = Params4bit(weight, requires_grad=False, **vars(layer.weight)).to(device)
    else:
        # bitsandbytes quantizes to 8 bit on the way from the CPU.
        layer.weight = Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False).to(device)
    if layer.bias is not None:
        layer.bias = nn.Parameter(torch.zeros(layer.out_features, dtype=dtype, device=device), requires_grad=False)
