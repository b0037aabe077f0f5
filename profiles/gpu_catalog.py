"""Every GPU of `gpus/*.toml`, found by any of its names, and bare sizes such as `16GB`."""

import re
import tomllib
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from profiles.errors import UnknownGpuError
from profiles.gpu import GpuProfile

GPU_FILES = Path(__file__).with_name("gpus")
BRANDS = ("nvidia", "amd", "tesla", "geforce", "quadro", "instinct", "radeon", "rtx", "gtx", "rx")
BARE_SIZE = re.compile(r"(?P<gib>-?\d+(\.\d+)?)\s*gi?b?(\s*gpu)?", re.IGNORECASE)
MAX_SIZE_GIB = 1024


def find_gpu(name: str) -> GpuProfile:
    """The GPU of this name, alias or bare memory size.

    Raises:
        UnknownGpuError: no GPU has this name, or the size is not that of a GPU.
    """
    if size := BARE_SIZE.fullmatch(name.strip()):
        return _bare_size(name, float(size["gib"]))
    key = _key(name)
    if found := _named(key, _mentioning(key)) or _named(key, all_gpus()):
        return found
    raise _unknown(name, key)


@cache
def all_gpus() -> tuple[GpuProfile, ...]:
    """Every GPU of the catalog, in the order of the files."""
    return tuple(gpu for path in _gpu_files() for gpu in _read(path))


def gpus_by_nvml_name(nvml_name: str) -> tuple[GpuProfile, ...]:
    """The GPUs that NVML calls so; several where one name covers two memory sizes."""
    key = _compact(nvml_name)
    return tuple(gpu for gpu in _mentioning(key) if gpu.nvml_name and _compact(gpu.nvml_name) == key)


@cache
def _gpu_files() -> tuple[Path, ...]:
    return tuple(path for path in sorted(GPU_FILES.glob("*.toml")) if path.name != "sources.toml")


@cache
def _read(path: Path) -> tuple[GpuProfile, ...]:
    rows = tomllib.loads(path.read_text("utf-8"))["gpu"]
    return tuple(GpuProfile.model_validate(row) for row in rows)


def _mentioning(key: str) -> tuple[GpuProfile, ...]:
    """The GPUs of the files where a string ends in `key`: parsing all files would be most of the time of an answer."""
    mentioned = (path for path in _gpu_files() if f'{key}"' in _compact(path.read_text("utf-8")))
    return tuple(gpu for path in mentioned for gpu in _read(path))


def _named(key: str, gpus: tuple[GpuProfile, ...]) -> GpuProfile | None:
    """The GPU with this key, be it of a name, of a name with the size behind it, or of the NVML name."""
    for keys_of in (gpu_keys, _sized_keys, _nvml_keys):
        if found := next((gpu for gpu in gpus if key in keys_of(gpu)), None):
            return found
    return None


def gpu_keys(gpu: GpuProfile) -> tuple[str, ...]:
    """The spellings of name and aliases that are compared: lower case, without separators and brand."""
    return tuple(_key(name) for name in (gpu.name, *gpu.aliases))


def _sized_keys(gpu: GpuProfile) -> tuple[str, ...]:
    return tuple(f"{key}{gpu.box_memory_gib:g}{unit}" for key in gpu_keys(gpu) for unit in ("g", "gb", "gib"))


def _nvml_keys(gpu: GpuProfile) -> tuple[str, ...]:
    return (_key(gpu.nvml_name),) if gpu.nvml_name else ()


def _key(name: str) -> str:
    key = _compact(name)
    while brand := next((brand for brand in BRANDS if key.startswith(brand) and key != brand), None):
        key = key.removeprefix(brand)
    return key


def _compact(text: str) -> str:
    return text.lower().translate({ord(separator): None for separator in " -_\t"})


def _bare_size(name: str, gib: float) -> GpuProfile:
    if not 1 <= gib <= MAX_SIZE_GIB:
        raise UnknownGpuError(f"'{name}' is not the memory of a GPU: a size is from 1 to {MAX_SIZE_GIB} GB", _HINT)
    return GpuProfile(
        name=f"{gib:g} GB GPU",
        box_memory_gib=gib,
        driver_memory_mib=int(gib * 1024),
        sources=("the size given",),
        notes="taken for a card that reports this size in all and can do what every card since compute capability 7.5 "
        "can: fp16 and memory-efficient attention, but no bf16; its speed is unknown",
    )


_HINT = "`fitune gpus` lists all names; a bare size such as 24GB works too"


def _unknown(name: str, key: str) -> UnknownGpuError:
    # Only here: an answer for a card has no use for the machines.
    from profiles.instance import all_instances

    names = {own: gpu.name for gpu in all_gpus() for own in gpu_keys(gpu)}
    names |= {_compact(machine.name): machine.name for machine in all_instances()}
    nearest = dict.fromkeys(names[close] for close in get_close_matches(key, names, n=3, cutoff=0.5))
    question = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
    return UnknownGpuError(f"no GPU is called '{name}'{question}", _HINT)
