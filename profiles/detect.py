"""The GPUs of this machine as the NVIDIA driver reports them now: memory, other processes, MIG instances."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from profiles.errors import EnvironmentFault
from profiles.gpu import GIB, GpuProfile
from profiles.gpu_catalog import gpus_by_nvml_name
from profiles.overheads import MIB

SAME_CARD_TOLERANCE = 0.1
"""Totals of one card differ by driver and ECC by up to 1/16; cards that share a name differ by a third or more."""


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that computes on a GPU. `used_bytes` is None where the driver does not tell."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class DetectedGpu:
    """A GPU, or one MIG instance of a GPU, that a process can run on.

    `index` is the driver's index of the card. `profile` holds the catalog's facts, or those of the driver alone where
    the catalog lacks the card. `total_bytes` and `free_bytes` are those of this moment.
    """

    index: int
    uuid: str
    name: str
    profile: GpuProfile
    total_bytes: int
    free_bytes: int
    processes: tuple[GpuProcess, ...]
    driver_version: str
    display_active: bool
    is_mig_instance: bool


def detect_gpu() -> DetectedGpu:
    """The GPU of this machine with most free memory, of those that CUDA_VISIBLE_DEVICES leaves.

    Raises:
        EnvironmentFault: there is no driver, no GPU, or none is visible.
    """
    return max(detect_usable_gpus(), key=lambda gpu: gpu.free_bytes)


def detect_usable_gpus() -> tuple[DetectedGpu, ...]:
    """The GPUs of this machine that CUDA_VISIBLE_DEVICES leaves. Raises as `detect_gpu` does."""
    gpus = detect_gpus()
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = gpus if setting is None else visible_gpus(gpus, setting)
    if not visible:
        names = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in gpus)
        raise EnvironmentFault(
            f"CUDA_VISIBLE_DEVICES is '{setting}', which hides every GPU of this machine",
            f"unset it or choose from: {names}",
        )
    return visible


def detect_gpus() -> tuple[DetectedGpu, ...]:
    """All GPUs of this machine, in the driver's order; of a card in MIG mode its instances.

    Raises:
        EnvironmentFault: there is no NVIDIA driver, or it fails, or it finds no GPU.
    """
    with _nvml() as nvml:
        driver_version = nvml.nvmlSystemGetDriverVersion()
        cards = (nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount()))
        gpus = tuple(
            _describe(nvml, index, card, device, driver_version)
            for index, card in enumerate(cards)
            for device in _devices(nvml, card)
        )
    if not gpus:
        raise EnvironmentFault("the NVIDIA driver finds no GPU on this machine", _HINT)
    return gpus


def visible_gpus(gpus: tuple[DetectedGpu, ...], setting: str) -> tuple[DetectedGpu, ...]:
    """Those of `gpus` that CUDA_VISIBLE_DEVICES=`setting` leaves, in its order.

    As in CUDA, an entry is an index or the start of a UUID, and the first entry that fits no GPU ends the list. CUDA
    numbers unlike cards fastest first unless CUDA_DEVICE_ORDER is PCI_BUS_ID; only UUIDs are sure to mean the same.
    """
    visible: list[DetectedGpu] = []
    for entry in (part.strip() for part in setting.split(",")):
        found = next((gpu for gpu in gpus if _is_named(gpu, entry)), None)
        if found is None:
            break
        visible.append(found)
    return tuple(visible)


_HINT = "name a card instead, for example `--gpu t4`, or install the NVIDIA driver; `fitune gpus` lists the names"


@contextmanager
def _nvml() -> Iterator[ModuleType]:
    # Importing pynvml takes longer than answering for a card that was named.
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise EnvironmentFault(f"no NVIDIA driver answers on this machine ({error})", _HINT) from error
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise EnvironmentFault(f"the NVIDIA driver failed while describing the GPUs: {error}", _HINT) from error
    finally:
        pynvml.nvmlShutdown()


def _describe(nvml: ModuleType, index: int, card: object, device: object, driver_version: str) -> DetectedGpu:
    """One `device`: the `card` itself or a MIG instance of it."""
    memory = nvml.nvmlDeviceGetMemoryInfo(device)
    name = nvml.nvmlDeviceGetName(device)
    is_instance = device is not card
    return DetectedGpu(
        index=index,
        uuid=nvml.nvmlDeviceGetUUID(device),
        name=name,
        profile=_profile(name, memory.total, nvml.nvmlDeviceGetCudaComputeCapability(card), is_instance),
        total_bytes=memory.total,
        free_bytes=memory.free,
        processes=_processes(nvml, device),
        driver_version=driver_version,
        display_active=bool(_ask(nvml, nvml.nvmlDeviceGetDisplayActive, card, otherwise=0)),
        is_mig_instance=is_instance,
    )


def _profile(name: str, total_bytes: int, compute_capability: tuple[int, int], is_instance: bool) -> GpuProfile:
    alike = () if is_instance else gpus_by_nvml_name(name)
    if alike:
        closest = min(alike, key=lambda gpu: abs(gpu.memory_total_bytes - total_bytes))
        if abs(closest.memory_total_bytes - total_bytes) <= SAME_CARD_TOLERANCE * total_bytes:
            return closest
    what = "a MIG instance" if is_instance else "not in the catalog"
    return GpuProfile(
        name=name,
        nvml_name=name,
        vendor="NVIDIA",
        compute_capability=(compute_capability[0], compute_capability[1]),
        box_memory_gib=total_bytes / GIB,
        driver_memory_mib=total_bytes // MIB,
        sources=("the NVIDIA driver",),
        notes=f"{what}: memory and compute capability are as the driver reports them, its speed is unknown",
    )


def _devices(nvml: ModuleType, card: object) -> tuple[object, ...]:
    """Handles of what a process can run on: the card, or its instances while it is in MIG mode."""
    in_mig_mode, _pending = _ask(nvml, nvml.nvmlDeviceGetMigMode, card, otherwise=(0, 0))
    if not in_mig_mode:
        return (card,)
    slots = range(nvml.nvmlDeviceGetMaxMigDeviceCount(card))
    handles = (_ask(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, card, slot, otherwise=None) for slot in slots)
    return tuple(handle for handle in handles if handle is not None)


def _processes(nvml: ModuleType, device: object) -> tuple[GpuProcess, ...]:
    running = _ask(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, device, otherwise=())
    return tuple(GpuProcess(process.pid, process.usedGpuMemory) for process in running)


def _ask(nvml: ModuleType, question: Callable[..., Any], *arguments: object, otherwise: object) -> Any:  # noqa: ANN401
    """The driver's answer, or `otherwise` where this card or this user may not ask."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return otherwise


def _is_named(gpu: DetectedGpu, entry: str) -> bool:
    return entry == str(gpu.index) or (entry.startswith(("GPU-", "MIG-")) and gpu.uuid.startswith(entry))
