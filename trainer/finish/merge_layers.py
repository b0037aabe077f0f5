"""An adapter merged into its base one layer at a time, with PEFT's own arithmetic.

The base is built without its weights, and PEFT puts the adapter on it. A layer then gets its weights for the moment in
which PEFT merges it, so that memory holds one layer and never the model.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from profiles.errors import UnsupportedError
from trainer.finish.base_checkpoint import TensorReader

LAYERWISE = frozenset({"ADALORA", "BOFT", "IA3", "LOHA", "LOKR", "LORA", "OFT", "VERA"})
"""Methods of PEFT whose layers merge alone. A test holds each one against the adapter as PEFT runs it."""

TOUCHING_MORE = ("target_parameters", "layer_replication", "modules_to_save", "trainable_token_indices")
"""Options by which an adapter holds more than a change of some modules' weights."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A module of the base and the adapter around it.

    Both dictionaries are by parameter of the module: the tensor of the base's files to read, and the one to write.
    """

    module: nn.Module
    adapter: BaseTunerLayer
    sources: dict[str, str]
    outputs: dict[str, str]

    @property
    def num_elements(self) -> int:
        """Numbers in the module's weights."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def merge(self, reader: TensorReader) -> dict[str, torch.Tensor]:
        """The merged float32 tensors by the name to write. Raises UnsupportedError if PEFT does not merge this kind."""
        for name, source in self.sources.items():
            # A copy, because PEFT adds to it in place, and what is read is a map of the file.
            self.module.get_parameter(name).data = reader.read(source).to(torch.float32, copy=True)
        try:
            self.adapter.merge()
        except (NotImplementedError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UnsupportedError(f"PEFT cannot merge {next(iter(self.outputs.values()))}: {reason}") from error
        merged = self.adapter.get_base_layer()
        tensors = {output: merged.get_parameter(name).data for name, output in self.outputs.items()}
        for parameter in (*self.module.parameters(), *merged.parameters()):
            parameter.data = _nothing_like(parameter)
        return tensors


def merges_by_layer(adapter: PeftConfig) -> bool:
    """Whether each layer of this adapter can be merged without the others.

    Not if it trains parts of the base itself, changes the base when it is put on, or adapts what is no module.
    """
    return (
        adapter.peft_type in LAYERWISE
        and getattr(adapter, "bias", "none") == "none"
        and getattr(adapter, "init_lora_weights", True) in (True, False, "gaussian")
        and not any(getattr(adapter, option, None) for option in TOUCHING_MORE)
    )


def hollow_out(model: PreTrainedModel) -> PreTrainedModel:
    """`model`, made on the meta device, with parameters on the CPU that hold one number each; shared ones stay shared.

    PEFT sees ordinary weights of the right shape, so it keeps the adapter's weights on the CPU. Embeddings are made
    whole, because an adapter on one brings a copy of it; until then they are memory that was never touched.
    """
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    whole = {module.weight for module in embeddings if module is not None}
    hollow: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter not in hollow:
                values = torch.zeros(parameter.shape) if parameter in whole else _nothing_like(parameter)
                hollow[parameter] = nn.Parameter(values, requires_grad=False)
            setattr(module, name, hollow[parameter])
    return model


class MergedTensors:
    """The tensors of the merged model, each made when it is asked for, by their names in the base's files.

    `model` is the base, hollow; `adapter` a folder that PEFT wrote; `tensors` what the base's files hold. `shapes` has
    the merged model's tensors on the meta device. `unties` says that input and output embeddings were one tensor and
    are two now, because the adapter changes one of them. `missing` are weights that the adapter changes and that are
    no tensors in the files. `largest_layer` is the number of elements of the largest layer that changes.
    """

    def __init__(self, model: PreTrainedModel, adapter: Path, tensors: dict[str, torch.Tensor]) -> None:
        modules = dict(model.named_modules())
        parameters = dict(model.named_parameters(remove_duplicate=False))
        stored = _names_in_files(model, parameters, tensors)
        shared = _shared_tensors(parameters, stored)
        namesakes = _namesakes(parameters)
        wrapped = _put_on(model, adapter).base_model.model
        layers = [
            _layer(path, modules[path], module, stored, shared)
            for path, module in wrapped.named_modules()
            if isinstance(module, BaseTunerLayer)
        ]
        self._layer_of = {name: layer for layer in layers for name in layer.outputs.values()}
        self.unties = any(stored.get(name, name) in self._layer_of for name in namesakes)
        # What was one tensor needs two names to differ; the one that does not change is read where the other one is.
        self._copies = shared if self.unties else {}
        self.shapes = tensors | {name: tensors[source] for name, source in self._copies.items()}
        self.missing = sorted({name for layer in layers for name in layer.sources.values()} - tensors.keys())
        self.largest_layer = max((layer.num_elements for layer in layers), default=0)
        self._last: tuple[Layer, dict[str, torch.Tensor]] | None = None

    def read(self, name: str, reader: TensorReader) -> torch.Tensor:
        """One tensor: merged, in float32, or as it is in the base's files. Raises RunError if a file is damaged."""
        layer = self._layer_of.get(name)
        if layer is None:
            return reader.read(self._copies.get(name, name))
        # A layer's weight and bias are asked for one after the other.
        if self._last is None or self._last[0] is not layer:
            self._last = (layer, layer.merge(reader))
        return self._last[1][name]


def _put_on(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """`model` with the adapter of a folder. Raises ValueError if a part of the adapter has no place in the model."""
    wrapped = PeftModel.from_pretrained(model, adapter, torch_device="cpu")
    known = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    with safe_open(adapter / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        strange = [name for name in file.keys() if name not in known and ".base_layer." not in name]  # noqa: SIM118
    if strange:
        raise ValueError(f"the base has no place for {strange[0]}")
    return wrapped


def _namesakes(parameters: dict[str, nn.Parameter]) -> set[str]:
    """Names of parameters that are one and the same with another one."""
    times = Counter(parameters.values())
    return {name for name, parameter in parameters.items() if times[parameter] > 1}


def _names_in_files(
    model: PreTrainedModel, parameters: dict[str, nn.Parameter], tensors: dict[str, torch.Tensor]
) -> dict[str, str]:
    """The name in the files of each parameter that is one tensor there, by the rules with which Transformers loads."""
    conversions = get_model_conversion_mapping(model)
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if isinstance(one, WeightConverter)]
    names = {}
    for key, tensor in tensors.items():
        name, converted = rename_source_key(key, renamings, converters, model.base_model_prefix, parameters)
        if converted is None and name in parameters and parameters[name].shape == tensor.shape:
            names[name] = key
    return names


def _shared_tensors(parameters: dict[str, nn.Parameter], stored: dict[str, str]) -> dict[str, str]:
    """For each parameter that the files lack, because it is the same as another one: the tensor of that one."""
    tensor_of = {parameters[name]: tensor for name, tensor in stored.items()}
    return {
        name: tensor_of[parameter]
        for name, parameter in parameters.items()
        if name not in stored and parameter in tensor_of
    }


def _layer(
    path: str, module: nn.Module, adapter: BaseTunerLayer, stored: dict[str, str], shared: dict[str, str]
) -> Layer:
    """The adapted module at `path`. A parameter that is not in the files keeps its own name there."""
    names = {name: f"{path}.{name}" for name, _ in module.named_parameters()}
    outputs = {name: stored.get(full, full) for name, full in names.items()}
    return Layer(module, adapter, {name: shared.get(output, output) for name, output in outputs.items()}, outputs)


def _nothing_like(parameter: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape that takes the memory of one number."""
    return torch.zeros((), dtype=torch.float32).expand(parameter.shape)
