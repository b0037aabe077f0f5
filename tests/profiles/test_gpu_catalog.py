import tomllib
from itertools import chain

import pytest

from profiles.errors import UnknownGpuError
from profiles.gpu import GIB
from profiles.gpu_catalog import GPU_FILES, all_gpus, find_gpu, gpu_keys, gpus_by_nvml_name
from profiles.overheads import MIB

SOURCES = tomllib.loads((GPU_FILES / "sources.toml").read_text("utf-8"))

each_gpu = pytest.mark.parametrize("gpu", all_gpus(), ids=lambda gpu: gpu.name)


@each_gpu
def test_memory_is_a_little_less_than_the_box_says(gpu):
    assert 0.85 * gpu.box_memory_gib * GIB < gpu.memory_bytes <= gpu.memory_total_bytes + MIB
    assert gpu.memory_total_bytes <= 1.03 * gpu.box_memory_gib * GIB


@each_gpu
def test_a_measured_card_keeps_no_less_memory_than_the_rule_promises(gpu):
    assert gpu.model_copy(update={"torch_memory_mib": None}).memory_bytes <= gpu.memory_bytes


@each_gpu
def test_speeds_are_those_of_a_gpu(gpu):
    assert gpu.bandwidth_bytes_per_s is None or 200e9 <= gpu.bandwidth_bytes_per_s <= 10e12
    assert gpu.nvlink_bytes_per_s is None or 50e9 <= gpu.nvlink_bytes_per_s <= 2e12
    assert gpu.tdp_watts is None or 50 <= gpu.tdp_watts <= 1500
    assert all(5e12 <= flops <= 6e15 for flops in gpu.flops.model_dump(exclude_none=True).values())


@each_gpu
def test_a_narrower_dtype_is_no_slower(gpu):
    rates = gpu.flops.model_dump(exclude_none=True)
    rising = [rates[dtype] for dtype in ("fp32", "tf32", "fp16", "int8") if dtype in rates]
    assert rising == sorted(rising)


@each_gpu
def test_flops_are_given_only_for_dtypes_that_the_card_has(gpu):
    assert gpu.supports_bf16 or gpu.flops.bf16 is None
    assert gpu.supports_fp8 or gpu.flops.fp8 is None


@each_gpu
def test_sources_are_listed(gpu):
    assert {*gpu.sources, *(offer.source for offer in gpu.offers)} <= SOURCES.keys()


@each_gpu
def test_uncertain_names_fields_that_are_set(gpu):
    for path in gpu.uncertain:
        value = gpu
        for field in path.split("."):
            value = getattr(value, field)
        assert value is not None


@each_gpu
def test_the_context_is_between_100_mib_and_1_gib(gpu):
    assert 100 * MIB < gpu.context_bytes < GIB


@each_gpu
def test_every_name_finds_its_card(gpu):
    for name in (gpu.name, *gpu.aliases, f"{gpu.name} {gpu.box_memory_gib:g}GB"):
        assert find_gpu(name) == gpu


def test_no_two_cards_share_a_name():
    keys = list(chain.from_iterable(set(gpu_keys(gpu)) for gpu in all_gpus()))
    assert len(keys) == len(set(keys))


def test_the_catalog_has_the_cards_that_people_train_on():
    assert len(all_gpus()) >= 55


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("t4", "T4"),
        ("Tesla T4", "T4"),
        ("nvidia-tesla-t4", "T4"),
        ("T4 16GB", "T4"),
        ("4090", "RTX 4090"),
        ("rtx 4090", "RTX 4090"),
        ("RTX_4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("rtx4090-24gb", "RTX 4090"),
        ("a100", "A100-SXM4-40GB"),
        ("a100-80gb", "A100-SXM4-80GB"),
        ("A100 80GB", "A100-SXM4-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-PCIE-80GB"),
        ("h100", "H100-SXM5-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM5-80GB"),
        ("H100 PCIe", "H100-PCIE-80GB"),
        ("h100 nvl", "H100-NVL"),
        ("h200", "H200-SXM-141GB"),
        ("v100", "V100-SXM2-16GB"),
        ("v100-32gb", "V100-SXM2-32GB"),
        ("nvidia a10g", "A10G"),
        ("a10", "A10"),
        ("a6000", "RTX A6000"),
        ("l40s", "L40S"),
        ("RTX 6000 Ada", "RTX 6000 Ada"),
        ("4060 ti", "RTX 4060 Ti 16GB"),
        ("4060 ti 8gb", "RTX 4060 Ti 8GB"),
        ("p100", "P100-PCIE-16GB"),
        ("b200", "B200"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_a_card_is_found_however_it_is_written(written, name):
    assert find_gpu(written).name == name


# "has a total capacity of ..." in torch's out-of-memory messages on these cards.
@pytest.mark.parametrize(
    ("name", "gib"),
    [("t4", 14.56), ("h100", 79.11), ("rtx 4090", 23.64), ("a100-80gb", 79.25), ("l4", 22.03), ("mi300x", 191.98)],
)
def test_memory_is_what_torch_prints_on_that_card(name, gib):
    assert find_gpu(name).memory_bytes / GIB == pytest.approx(gib, abs=0.01)


@pytest.mark.parametrize(("written", "gib"), [("16GB", 16), ("24 GiB", 24), ("15.5gb", 15.5), ("80g", 80)])
def test_a_bare_size_is_a_card_of_that_size(written, gib):
    gpu = find_gpu(written)
    assert gpu.memory_total_bytes == gib * GIB
    assert 0.96 * gib * GIB < gpu.memory_bytes < gib * GIB
    assert not gpu.memory_measured


def test_a_bare_size_says_what_it_assumes():
    gpu = find_gpu("16GB")
    assert gpu.name == "16 GB GPU"
    assert gpu.notes is not None
    assert "no bf16" in gpu.notes
    assert not gpu.supports_bf16


@pytest.mark.parametrize("written", ["0GB", "-16GB", "0.5GB", "5000GB"])
def test_a_size_that_no_gpu_has_is_refused(written):
    with pytest.raises(UnknownGpuError, match="not the memory of a GPU"):
        find_gpu(written)


def test_an_unknown_card_is_refused_with_the_nearest_names():
    with pytest.raises(UnknownGpuError, match=r"no GPU is called 'rtx 4099'; did you mean RTX 40") as raised:
        find_gpu("rtx 4099")
    assert raised.value.hint is not None
    assert "fitune gpus" in raised.value.hint


@pytest.mark.parametrize("written", ["", "gpu", "rtx", "t4 80gb"])
def test_a_word_that_is_no_card_is_refused(written):
    with pytest.raises(UnknownGpuError, match="no GPU is called"):
        find_gpu(written)


def test_one_nvml_name_can_stand_for_two_sizes():
    found = gpus_by_nvml_name("NVIDIA GeForce RTX 4060 Ti")
    assert [gpu.box_memory_gib for gpu in found] == [8, 16]


@each_gpu
def test_every_nvml_name_finds_its_card(gpu):
    if gpu.nvml_name is not None:
        assert gpu in gpus_by_nvml_name(gpu.nvml_name)
        assert find_gpu(gpu.nvml_name).nvml_name == gpu.nvml_name
