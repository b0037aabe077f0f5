"""What stands between this machine and a training run, and the command that cures it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from planner.machine.finding import Finding as Finding
from planner.machine.several_cards import several_cards
from planner.units import GIB, format_bytes
from profiles.detect import DetectedGpu, detect_gpus, visible_gpus
from profiles.errors import EnvironmentFault
from profiles.gpu import GpuProfile

INSTALL_TRAIN = "pip install 'fitune[train]'"
# PyPI's torch for CUDA 13 has no kernels older than Turing; the CUDA 12.6 wheels up to 2.14 have (pytorch#172352).
TURING = (7, 5)
INSTALL_OLD_CARD = "pip install 'torch<2.15' --index-url https://download.pytorch.org/whl/cu126"
INSTALL_CUDA = "pip install --force-reinstall torch"
PROBE_SECONDS = 120
# A 7B checkpoint in 16 bits is 13.5 GB; the adapters and optimizer states of two saved steps come on top.
ROOMY_DISK_BYTES = 20 * GIB
# Importing torch, transformers and a data set takes 2 to 4 GiB before the first weight is read.
ROOMY_RAM_BYTES = 8 * GIB

# Asking libraries what they were built for is not enough: a kernel that runs is the proof.
TORCH_PROBE = """
import json, torch

def failure(work):
    try:
        work()
    except Exception as error:
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

def multiply():
    ones = torch.ones(64, 64, device="cuda", dtype=torch.float16)
    (ones @ ones).sum().item()

def quantize():
    import bitsandbytes
    weights = torch.ones(64, 64, device="cuda" if found else "cpu", dtype=torch.float16)
    bitsandbytes.functional.dequantize_4bit(*bitsandbytes.functional.quantize_4bit(weights)).sum().item()

found = torch.cuda.is_available()
print(json.dumps({
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "available": found,
    "archs": torch.cuda.get_arch_list() if found else [],
    "multiply": failure(multiply) if found else None,
    "quantize": failure(quantize),
}))
"""


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """What the installed torch says of itself: versions, whether it sees a card, architectures it has kernels for.

    `multiply` and `quantize` are the first lines of the errors that a product on the card and bitsandbytes end in.
    """

    version: str
    cuda: str | None
    available: bool
    archs: tuple[str, ...]
    multiply: str | None = None
    quantize: str | None = None


def examine(folder: Path) -> list[Finding]:
    """Everything that a run in `folder` needs, looked at on this machine."""
    cards, about_cards = graphics_cards()
    findings = [_python(), *about_cards, *packages(train_requirements())]
    if _installed_version("torch"):
        build = torch_build()
        findings.append(torch_and_cards(build, [card.profile for card in cards]))
        if build is not None and _installed_version("bitsandbytes"):
            findings.append(quantizer(build))
        if build is not None and build.available:
            findings += several_cards([card.profile for card in cards])
    return [*findings, disk(folder), memory()]


def graphics_cards() -> tuple[tuple[DetectedGpu, ...], list[Finding]]:
    """The GPUs of this machine, and a finding for each; without one a warning, since a CPU trains tiny models."""
    try:
        cards = detect_gpus()
    except EnvironmentFault as error:
        return (), [Finding("GPU", "warning", f"{error.message}; a CPU trains tiny models only")]
    findings = [finding for card in cards for finding in (_card(card), formats(card.profile))]
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    if setting is not None and not visible_gpus(cards, setting):
        message = f"CUDA_VISIBLE_DEVICES is '{setting}', which hides every card"
        findings.append(Finding("GPU", "problem", message, "unset CUDA_VISIBLE_DEVICES"))
    return cards, findings


def formats(card: GpuProfile) -> Finding:
    """What `card` computes with, and what stands in for what it lacks; the planner chooses by the same facts."""
    features = (
        ("bf16", card.supports_bf16, "fp16 stands in"),
        ("flash attention", card.supports_flash_attention, "slower kernels stand in"),
        ("int8", card.supports_int8, "nf4 stands in"),
        ("4-bit", card.supports_bnb_4bit, "no qlora"),
    )
    has = [name for name, there, _ in features if there]
    lacks = [f"no {name} ({instead})" for name, there, instead in features if not there]
    return Finding("formats", "ok", f"{card.name}: {', '.join([*has, *lacks])}")


def train_requirements() -> list[Requirement] | None:
    """What the extra `train` asks for, with ranges; None where fitune runs from a folder without being installed."""
    try:
        lines = metadata.requires("fitune") or []
    except metadata.PackageNotFoundError:
        return None
    requirements = [Requirement(line) for line in lines]
    return [one for one in requirements if one.marker and one.marker.evaluate({"extra": "train"})]


def packages(requirements: Sequence[Requirement] | None) -> list[Finding]:
    """One finding for each package that training needs: there, and in the tested range."""
    if requirements is None:
        message = "not installed in this Python, so the packages it trains with cannot be checked"
        return [Finding("fitune", "warning", message, "pip install -e '.[train]'")]
    return [_package(requirement) for requirement in requirements]


def torch_build() -> TorchBuild | None:
    """What torch says of itself in a process of its own; None if it cannot be imported."""
    argv = [sys.executable, "-c", TORCH_PROBE]
    try:
        run = subprocess.run(argv, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True)
        said = json.loads(run.stdout)
    except (subprocess.SubprocessError, json.JSONDecodeError):
        return None
    return TorchBuild(**{**said, "archs": tuple(said["archs"])})


def torch_and_cards(build: TorchBuild | None, cards: Sequence[GpuProfile]) -> Finding:
    """Whether this build of torch can compute on each of `cards`; None is one that cannot be imported."""
    if build is None:
        return Finding("torch build", "problem", "torch is installed but cannot be imported", INSTALL_CUDA)
    runs_on = f"CUDA {build.cuda}" if build.cuda else "a CPU"
    if not cards:
        return Finding("torch build", "ok", f"torch {build.version} is built for {runs_on}")
    unsupported = [card for card in cards if build.archs and not has_kernels(build.archs, card)]
    oldest = min(cards, key=lambda card: card.compute_capability or TURING)
    cure = INSTALL_OLD_CARD if (oldest.compute_capability or TURING) < TURING else INSTALL_CUDA
    if build.cuda is None:
        return Finding("torch build", "problem", f"torch {build.version} is built for a CPU and ignores the card", cure)
    if not build.available:
        message = f"torch {build.version} for CUDA {build.cuda} cannot reach the card: the driver is too old for it"
        return Finding("torch build", "problem", message, INSTALL_OLD_CARD)
    if unsupported:
        message = f"torch {build.version} has no kernels for the {unsupported[0].name}"
        return Finding("torch build", "problem", message, cure)
    if build.multiply is not None:
        message = f"torch {build.version} fails on the card: {build.multiply}"
        return Finding("torch build", "problem", message, "sudo nvidia-smi --gpu-reset")
    return Finding("torch build", "ok", f"torch {build.version} for CUDA {build.cuda} has kernels for each card")


def quantizer(build: TorchBuild) -> Finding:
    """Whether bitsandbytes quantizes here, on the card if torch reaches one."""
    place = "the card" if build.available else "the CPU"
    if build.quantize is None:
        return Finding("4-bit", "ok", f"bitsandbytes quantizes on {place}")
    message = f"bitsandbytes fails on {place}: {build.quantize}"
    return Finding("4-bit", "problem", message, "pip install --force-reinstall --no-deps bitsandbytes")


def has_kernels(archs: Sequence[str], card: GpuProfile) -> bool:
    """Whether code for one of `archs` runs on `card`: same major and no newer minor, or older PTX."""
    if card.compute_capability is None:
        return True
    for arch in archs:
        kind, _, digits = arch.rstrip("af").partition("_")
        built = (int(digits[:-1]), int(digits[-1]))
        same_major = built[0] == card.compute_capability[0]
        if built <= card.compute_capability and (same_major or kind == "compute"):
            return True
    return False


def disk(folder: Path) -> Finding:
    """Free space where runs are written; the weights go to the Hub's cache, which may be another disk."""
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    free = {place: shutil.disk_usage(_existing(place)).free for place in (folder.resolve(), cache)}
    place, least = min(free.items(), key=lambda item: item[1])
    message = f"{format_bytes(least)} free in {place}"
    if least < ROOMY_DISK_BYTES:
        cure = "export HF_HOME=/a/larger/disk" if place == cache else "start in a folder on a larger disk"
        return Finding("disk", "warning", f"{message}; a 7B checkpoint is 13 GiB", cure)
    return Finding("disk", "ok", message)


def memory() -> Finding:
    """The machine's memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    message = f"{format_bytes(total)} of memory"
    if total < ROOMY_RAM_BYTES:
        return Finding("memory", "warning", f"{message}; loading a checkpoint may need more")
    return Finding("memory", "ok", message)


def _card(card: DetectedGpu) -> Finding:
    free = f"{format_bytes(card.free_bytes)} of {format_bytes(card.total_bytes)} free"
    message = f"{card.name}, {free}, driver {card.driver_version}"
    if card.processes:
        pids = " ".join(str(process.pid) for process in card.processes)
        return Finding(
            "GPU", "warning", f"{message}; other processes compute on it", f"ps -o pid,user,args -p '{pids}'"
        )
    return Finding("GPU", "ok", message)


def _python() -> Finding:
    return Finding("python", "ok", f"{sys.version.split()[0]} in {sys.prefix}")


def _package(requirement: Requirement) -> Finding:
    version = _installed_version(requirement.name)
    if version is None:
        return Finding(requirement.name, "problem", "not installed", INSTALL_TRAIN)
    if not requirement.specifier.contains(version, prereleases=True):
        message = f"{version}, but fitune is tested with {requirement.specifier}"
        return Finding(requirement.name, "problem", message, f"pip install '{requirement.name}{requirement.specifier}'")
    return Finding(requirement.name, "ok", version)


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())
