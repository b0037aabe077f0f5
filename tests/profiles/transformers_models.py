"""The model classes of Transformers, built without memory for the profiles of the catalog."""

from collections import Counter

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from calibration.trace.model_config import transformers_config
from profiles.model import ModelProfile


def built_model(model: ModelProfile, **settings: object) -> PreTrainedModel:
    """The model that Transformers builds for `model`."""
    auto = AutoModelForSeq2SeqLM if model.is_encoder_decoder else AutoModelForCausalLM
    auto = AutoModelForImageTextToText if model.model_type == "gemma3" else auto
    return auto.from_config(transformers_config(model), **settings)


def meta_model(model: ModelProfile) -> PreTrainedModel:
    """The model that Transformers builds for `model`, on the meta device."""
    with torch.device("meta"):
        return built_model(model)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes."""
    return "Norm" in type(module).__name__


def text_modules(built: PreTrainedModel) -> dict[str, nn.Module]:
    """All modules that text passes, by path."""
    return {
        path: module
        for path, module in built.named_modules()
        if "vision_tower" not in path and "multi_modal_projector" not in path
    }


def projections(built: PreTrainedModel) -> Counter[tuple[str, int, int, bool, str]]:
    """How often each matrix occurs in the layers: name, in, out, whether it has a bias, class."""
    found: Counter[tuple[str, int, int, bool, str]] = Counter()
    for path, module in text_modules(built).items():
        name = path.rpartition(".")[2]
        if module is built.get_output_embeddings() or name in {"project_in", "project_out"}:
            continue
        if isinstance(module, Conv1D):
            found[name, *module.weight.shape, module.bias is not None, "Conv1D"] += 1
        elif isinstance(module, nn.Linear):
            shape = (module.in_features, module.out_features)
            found[name, *shape, module.bias is not None, type(module).__name__] += 1
    return found


def norms(built: PreTrainedModel) -> Counter[tuple[str, int]]:
    """How often each norm occurs: name, parameters."""
    return Counter(
        (path.rpartition(".")[2], sum(parameter.numel() for parameter in module.parameters()))
        for path, module in text_modules(built).items()
        if is_norm(module)
    )


def group_of(path: str, owner: nn.Module) -> str:
    """The parameter group (field of ParameterCounts) of a parameter by its path and the module that owns it."""
    if "vision_tower" in path or "multi_modal_projector" in path:
        return "other"
    if is_norm(owner):
        return "norms"
    if any(part in path for part in ("attn", "attention", "Attention")):
        return "attention"
    if any(part in path for part in (".experts.", ".shared_experts.", ".gate.", ".router.")):
        return "experts"
    if isinstance(owner, nn.Embedding) or "project_" in path:
        return "embeddings"
    return "head" if path.startswith("lm_head") else "mlp"


def group_counts(built: PreTrainedModel) -> dict[str, int]:
    """Parameters by group, tied weights once."""
    counts = dict.fromkeys(("embeddings", "head", "attention", "mlp", "experts", "norms", "other"), 0)
    for path, parameter in built.named_parameters():
        owner = built.get_submodule(path.rpartition(".")[0])
        counts[group_of(path, owner)] += parameter.numel()
    return counts


def dtypes_saved_by_norm(norm: nn.Module, width: int) -> set[torch.dtype]:
    """Dtypes of the full-size tensors that autograd keeps for the backward pass of a bfloat16 norm."""
    norm = norm.to(torch.bfloat16)
    saved: set[torch.dtype] = set()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() == 5 * width:
            saved.add(tensor.dtype)
        return tensor

    states = torch.randn(5, width, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        norm(states)
    return saved


class EagerScores(TorchDispatchMode):
    """Notes the dtypes in which attention multiplies queries with keys and takes the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.product: torch.dtype | None = None
        self.last_product: torch.dtype | None = None
        self.softmax: torch.dtype | None = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.name()
        if name.startswith(("aten::bmm", "aten::baddbmm", "aten::matmul")):
            self.last_product = result.dtype
        if name.startswith("aten::_softmax"):
            self.product, self.softmax = self.last_product, result.dtype
        return result

    @property
    def kind(self) -> str:
        """The value of `Attention.eager_scores` that describes what was seen."""
        if self.product == torch.float32:
            return "float32"
        return "float32_softmax" if self.softmax == torch.float32 else "input"
