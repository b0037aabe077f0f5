"""The machine and the libraries of a run, as the record keeps them."""

import platform
from importlib import metadata

import pynvml
import torch

from planner.records.run_record import Environment

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "fitune")


def environment(device: torch.device) -> Environment:
    """What the run on `device` depends on."""
    on_cuda = device.type == "cuda"
    return Environment(
        gpu=torch.cuda.get_device_name(device) if on_cuda else None,
        driver=_driver() if on_cuda else None,
        cuda=torch.version.cuda,
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: version for name in PACKAGES if (version := _version(name))},
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None
