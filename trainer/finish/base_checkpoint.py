"""The weights of a base model as they lie on the disk, read tensor by tensor."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from profiles.errors import InputError, RunError, UnknownModelError
from trainer.model.model_name import weights_name

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
NEEDED_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py", "README.md")


@dataclass(frozen=True, slots=True)
class BaseCheckpoint:
    """A folder with a 16- or 32-bit model in safetensors.

    `tensors` has each tensor's shape and dtype, on the meta device, by its name in the files and in their order;
    `files` says where each one lies.
    """

    folder: Path
    tensors: dict[str, torch.Tensor]
    files: dict[str, Path]

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json, as it stands."""
        return read_json(self.folder / "config.json")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the weights."""
        sizes: Counter[torch.dtype] = Counter()
        for tensor in self.tensors.values():
            sizes[tensor.dtype] += tensor.nbytes if tensor.is_floating_point() else 0
        return sizes.most_common(1)[0][0]

    @contextmanager
    def opened(self) -> Iterator["TensorReader"]:
        """A reader of the tensors. Files are mapped into memory; a tensor is read when it is asked for."""
        with ExitStack() as stack:
            yield TensorReader(self.files, stack)


class TensorReader:
    """Reads tensors of open files."""

    def __init__(self, files: dict[str, Path], stack: ExitStack) -> None:
        self._files = files
        self._stack = stack
        self._opened: dict[Path, Any] = {}

    def read(self, name: str) -> torch.Tensor:
        """The tensor of this name, on the CPU. Raises RunError if its file is damaged."""
        file = self._files[name]
        try:
            if file not in self._opened:
                self._opened[file] = self._stack.enter_context(safe_open(file, framework="pt"))
            return self._opened[file].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error


def open_base(name: str) -> BaseCheckpoint:
    """The checkpoint of the base model `name`: a folder, a Hub id or an alias; what is not in the cache is downloaded.

    Raises UnknownModelError, InputError for a quantized one, whose weights would be rounded a second time, and RunError
    for a damaged file.
    """
    folder = _folder(weights_name(name))
    if not (folder / "config.json").exists():
        raise UnknownModelError(f"the base model {name} has no config.json in {folder}")
    quantization = read_json(folder / "config.json").get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method", "an unnamed method")
        raise InputError(
            f"the base model {name} is quantized with {method}; merged weights would be rounded once more, which loses "
            "part of what was learned",
            hint="merge into the 16-bit model that it was made from: --base MODEL",
        )
    tensors: dict[str, torch.Tensor] = {}
    files: dict[str, Path] = {}
    for file in _weight_files(folder, name):
        shapes = _shapes(file)
        tensors |= shapes
        files |= dict.fromkeys(shapes, file)
    return BaseCheckpoint(folder, tensors, files)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _folder(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=list(NEEDED_FILES)))
    except (OSError, ValueError) as error:
        raise UnknownModelError(
            f"the base model {name} is neither a folder here nor within reach",
            hint="name it with --base: a folder, or a Hub id that this machine can reach",
        ) from error


def _weight_files(folder: Path, name: str) -> list[Path]:
    """The files that hold the model; a repository may have others, such as the format of another library."""
    index = folder / INDEX_FILE
    names = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else [SINGLE_FILE]
    missing = [file for file in names if not (folder / file).exists()]
    if missing:
        raise UnknownModelError(
            f"the base model {name} lacks {missing[0]} in {folder}",
            hint="a merge reads weights in safetensors; name another base with --base",
        )
    return [folder / file for file in names]


def _shapes(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name, without their values."""
    try:
        with safe_open(file, framework="pt") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
            return {name: _without_values(part) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error


def _without_values(part: Any) -> torch.Tensor:  # noqa: ANN401  # a slice of safetensors
    shape = part.get_shape()
    # Its dtype is known to torch only in a tensor; an empty one costs nothing.
    return torch.empty(shape, dtype=(part[:0] if shape else part[...]).dtype, device="meta")


def _damaged(file: Path, error: Exception) -> RunError:
    return RunError(f"{file} cannot be read: {error}", hint="download or copy it again")
