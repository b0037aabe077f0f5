"""The weights of a merged model, written as safetensors: layer by layer where the adapter allows it."""

import ctypes
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from peft import PeftConfig, PeftModel
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.utils import logging

from profiles.errors import InputError, RunError, UnsupportedError
from trainer.finish.base_checkpoint import INDEX_FILE, BaseCheckpoint
from trainer.finish.merge_layers import MergedTensors, hollow_out, merges_by_layer

SHARD_BYTES = 2 * 10**9
"""Most bytes of a file that is written; memory holds one such file while it is filled."""

MERGE_BYTES = 16
"""Bytes for each number of the largest layer: PEFT holds it, its change, their sum and a product in float32."""

HOLES = 1.2
"""What the process holds over what is counted: a merge of 2.07 billion bfloat16 weights took 1.09 times as much (glibc,
21 Nov 2026)."""

Advance = Callable[[int], None]
"""Told how many more bytes are written."""


class WeightsMerge(Protocol):
    """A merge that is ready to begin: what it will take, and what does it.

    `unties` says that input and output embeddings, one tensor in the base, are two in the merged model.
    """

    memory_bytes: int
    disk_bytes: int
    unties: bool

    def write(self, folder: Path, advance: Advance) -> None:
        """Write the merged weights into `folder`. Raises RunError if one is not finite."""


def plan_merge(base: BaseCheckpoint, adapter: Path, dtype: torch.dtype, trust_remote_code: bool) -> WeightsMerge:
    """The merge of an adapter's folder into `base`, with weights of `dtype`.

    Raises UnsupportedError for an adapter that no weights can take up, and InputError for one that does not belong to
    this base.
    """
    description = PeftConfig.from_pretrained(str(adapter))
    if description.is_prompt_learning:
        raise UnsupportedError(
            f"{description.peft_type.value} learns tokens in front of the input, which no weights can take up",
            hint="keep the adapter: `fitune chat` and PEFT load it beside its base",
        )
    source = _Source(base, adapter, description, trust_remote_code)
    if merges_by_layer(description):
        with _adapter_problems(adapter, base):
            merged = MergedTensors(source.hollow_model(), adapter, base.tensors)
        if not merged.missing:
            return LayerwiseMerge(base, merged, dtype)
    return WholeMerge(source, dtype)


class LayerwiseMerge:
    """Holds one layer and one file that is being written in memory."""

    def __init__(self, base: BaseCheckpoint, merged: MergedTensors, dtype: torch.dtype) -> None:
        self._base = base
        self._merged = merged
        self._dtype = dtype
        self._files = _split(merged.shapes, dtype)
        self.disk_bytes: int = self._files.metadata["total_size"]
        largest_tensor = max(_num_bytes(tensor, dtype) for tensor in merged.shapes.values())
        file_bytes = max(min(SHARD_BYTES, self.disk_bytes), largest_tensor)
        self.memory_bytes = round(HOLES * (file_bytes + MERGE_BYTES * merged.largest_layer))
        self.unties = merged.unties

    def write(self, folder: Path, advance: Advance) -> None:
        """Write file by file, as they are in the index."""
        with self._base.opened() as reader:
            for file, names in self._files.filename_to_tensors.items():
                tensors = {}
                for name in names:
                    tensors[name] = _cast(name, self._merged.read(name, reader), self._dtype)
                    advance(tensors[name].nbytes)
                save_file(tensors, folder / file, metadata={"format": "pt"})
                del tensors
                _return_free_memory()
        if self._files.is_sharded:
            index = {"metadata": self._files.metadata, "weight_map": self._files.tensor_to_filename}
            (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


class WholeMerge:
    """Loads the model and leaves the merge to PEFT, for adapters that do not merge layer by layer."""

    unties = False
    """PEFT sees to it itself, and says so in the configuration that it leaves."""

    def __init__(self, source: "_Source", dtype: torch.dtype) -> None:
        self._source = source
        self._dtype = dtype
        sizes = [_num_bytes(tensor, dtype) for tensor in source.base.tensors.values()]
        self.disk_bytes = sum(sizes)
        largest = max(tensor.numel() for tensor in source.base.tensors.values())
        self.memory_bytes = round(HOLES * (sum(sizes) + MERGE_BYTES * largest))

    def write(self, folder: Path, advance: Advance) -> None:
        """Merge, then write; also config.json and the settings of generation."""
        model = self._source.load_model(self._dtype)
        with _adapter_problems(self._source.adapter, self._source.base):
            wrapped = PeftModel.from_pretrained(model, self._source.adapter, torch_device="cpu")
        try:
            merged = wrapped.merge_and_unload()
        except (NotImplementedError, AttributeError, ValueError) as error:
            raise _unmergeable(self._source.description, error) from error
        for name, tensor in merged.state_dict().items():
            _cast(name, tensor, tensor.dtype)
        merged.save_pretrained(folder, max_shard_size=SHARD_BYTES)
        advance(self.disk_bytes)


class _Source:
    """The base and the adapter, and how to make a model of them."""

    def __init__(self, base: BaseCheckpoint, adapter: Path, description: PeftConfig, trust_remote_code: bool) -> None:
        self.base = base
        self.adapter = adapter
        self.description = description
        self._trust_remote_code = trust_remote_code

    def hollow_model(self) -> PreTrainedModel:
        """The base without its weights."""
        with torch.device("meta"):
            model = self._model_class.from_config(
                self._config(), dtype=torch.float32, trust_remote_code=self._trust_remote_code
            )
        return hollow_out(model)

    def load_model(self, dtype: torch.dtype) -> PreTrainedModel:
        """The base with its weights, on the CPU."""
        verbosity = logging.get_verbosity()
        # The base of a reward model has no score head, which is reported; the adapter brings it.
        logging.set_verbosity_error()
        try:
            return self._model_class.from_pretrained(
                self.base.folder,
                config=self._config(),
                dtype=dtype,
                trust_remote_code=self._trust_remote_code,
                use_safetensors=True,
            )
        finally:
            logging.set_verbosity(verbosity)

    @property
    def _model_class(self) -> Any:  # noqa: ANN401  # the Auto classes share no type
        task = str(self.description.task_type)
        others = {"SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM, "SEQ_CLS": AutoModelForSequenceClassification}
        return others.get(task, AutoModelForCausalLM)

    def _config(self) -> Any:  # noqa: ANN401  # a type that mypy does not see
        config = AutoConfig.from_pretrained(self.base.folder, trust_remote_code=self._trust_remote_code)
        if self._model_class is AutoModelForSequenceClassification:
            # A reward model: one score a row.
            config.num_labels = 1
        return config


@contextmanager
def _adapter_problems(adapter: Path, base: BaseCheckpoint) -> Iterator[None]:
    """Say in a sentence that an adapter does not belong to the base; PEFT only warns of weights that are not there."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            yield
    except (RuntimeError, ValueError, KeyError, UserWarning) as error:
        what = " ".join(str(error).split())
        raise InputError(
            f"the adapter {adapter} does not belong to the base {base.folder}: {what[:300]}",
            hint="name the base that it was trained on with --base",
        ) from error


def _unmergeable(description: PeftConfig, error: Exception) -> UnsupportedError:
    reason = " ".join(str(error).split())
    return UnsupportedError(
        f"PEFT cannot merge {description.peft_type.value} into weights{f': {reason}' if reason else ''}",
        hint="keep the adapter: `fitune chat` and PEFT load it beside its base",
    )


def _split(shapes: dict[str, torch.Tensor], dtype: torch.dtype) -> StateDictSplit:
    """Which tensor goes into which file."""
    return split_state_dict_into_shards_factory(
        shapes,
        get_storage_size=lambda tensor: _num_bytes(tensor, dtype),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )


def _return_free_memory() -> None:
    """Give back what was freed: glibc keeps the holes between tensors, and they would add up from file to file."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _num_bytes(tensor: torch.Tensor, dtype: torch.dtype) -> int:
    num_bytes: int = tensor.numel() * (dtype if tensor.is_floating_point() else tensor.dtype).itemsize
    return num_bytes


def _cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor` in `dtype` if it is no integer, in a memory of its own. Raises RunError if it is not finite."""
    if not tensor.is_floating_point():
        return tensor.contiguous()
    cast = tensor.to(dtype).contiguous()
    # The ends of its range tell, NaN included, and cost a tenth of a look at each number.
    if cast.numel() and not all(isfinite(end.item()) for end in cast.aminmax()):
        raise RunError(
            f"{name} is not finite after the merge",
            hint="the adapter or the base is damaged, or --dtype is too narrow: float16 ends at 65504",
        )
    return cast
