import pytest
from pydantic import ValidationError

from profiles.gpu import GpuProfile, Offer
from profiles.overheads import MIB


def card(**fields: object) -> GpuProfile:
    return GpuProfile.model_validate({"name": "card", "box_memory_gib": 16, "sources": ["test"]} | fields)


def nvidia(major: int, minor: int, **fields: object) -> GpuProfile:
    return card(vendor="NVIDIA", compute_capability=(major, minor), **fields)


def amd(target: str) -> GpuProfile:
    return card(vendor="AMD", gfx_target=target)


def test_memory_is_what_torch_reports_where_torch_was_asked():
    gpu = nvidia(7, 5, torch_memory_mib=14912, driver_memory_mib=15360)
    assert (gpu.memory_bytes, gpu.memory_total_bytes, gpu.memory_measured) == (14912 * MIB, 15360 * MIB, True)


def test_memory_is_below_the_drivers_total_where_torch_was_not_asked():
    gpu = nvidia(7, 5, driver_memory_mib=10000)
    assert (gpu.memory_bytes, gpu.memory_measured) == (9700 * MIB, False)


def test_the_driver_keeps_no_more_of_a_large_card():
    gpu = nvidia(10, 0, driver_memory_mib=189471)
    assert gpu.memory_bytes == (189471 - 768) * MIB


def test_ecc_is_taken_off_the_size_on_the_box():
    plain, with_ecc = nvidia(7, 5), nvidia(7, 5, inline_ecc=True)
    assert plain.memory_total_bytes == 16384 * MIB
    assert with_ecc.memory_total_bytes == 15360 * MIB


# The rows of the support matrix of bitsandbytes 0.50.2 and of the kernel checks in torch 2.13's sdp_utils.cpp.
@pytest.mark.parametrize(
    ("capability", "bf16", "flash", "fp8", "int8", "bnb_4bit"),
    [
        ((6, 0), False, False, False, False, True),
        ((7, 0), False, False, False, False, True),
        ((7, 5), False, False, False, True, True),
        ((8, 0), True, True, False, True, True),
        ((8, 6), True, True, False, True, True),
        ((8, 9), True, True, True, True, True),
        ((9, 0), True, True, True, True, True),
        ((10, 3), True, True, True, True, True),
        ((12, 0), True, True, True, True, True),
    ],
)
def test_capabilities_follow_from_the_compute_capability(capability, bf16, flash, fp8, int8, bnb_4bit):
    gpu = nvidia(*capability)
    assert gpu.supports_bf16 is gpu.supports_tf32 is bf16
    assert gpu.supports_flash_attention is flash
    assert gpu.supports_memory_efficient_attention
    assert (gpu.supports_fp8, gpu.supports_int8, gpu.supports_bnb_4bit) == (fp8, int8, bnb_4bit)


@pytest.mark.parametrize(
    ("target", "flash", "fp8"),
    [("gfx908", False, False), ("gfx90a", True, False), ("gfx942", True, True), ("gfx1100", True, False)],
)
def test_capabilities_of_amd_follow_from_the_gfx_target(target, flash, fp8):
    gpu = amd(target)
    assert gpu.supports_bf16
    assert (gpu.supports_flash_attention, gpu.supports_fp8) == (flash, fp8)


def test_a_card_of_unknown_make_is_taken_for_a_turing():
    gpu = card()
    assert not gpu.supports_bf16
    assert not gpu.supports_flash_attention
    assert gpu.supports_memory_efficient_attention
    assert gpu.supports_int8


@pytest.mark.parametrize(
    ("gpu", "mib"),
    [
        (nvidia(7, 5), 8.125),
        (nvidia(8, 9), 8.125),
        (nvidia(9, 0), 32),
        (nvidia(10, 0), 32),
        (nvidia(12, 0), 32),
        (card(), 32),
        (amd("gfx90a"), 32),
        (amd("gfx942"), 128),
    ],
    ids=["sm75", "sm89", "sm90", "sm100", "sm120", "unknown", "gfx90a", "gfx942"],
)
def test_cublas_takes_a_larger_workspace_from_hopper_on(gpu, mib):
    assert gpu.cublas_workspace_bytes == mib * MIB


def test_the_price_range_is_over_the_offers():
    def offer(usd: float) -> Offer:
        return Offer(cloud="a cloud", usd_per_hour=usd, date="2025-03-07", source="test")

    two, three = card(offers=[offer(3), offer(1)]).price, card(offers=[offer(3), offer(9), offer(1)]).price
    assert two is not None
    assert three is not None
    assert (two.min_usd_per_hour, two.median_usd_per_hour) == (1, 2)
    assert (three.min_usd_per_hour, three.median_usd_per_hour) == (1, 3)
    assert card().price is None


@pytest.mark.parametrize(
    "fields",
    [
        {"vendor": "NVIDIA"},
        {"vendor": "AMD", "compute_capability": (8, 0)},
        {"vendor": "NVIDIA", "compute_capability": (8, 0), "gfx_target": "gfx942"},
        {"compute_capability": (8, 0)},
    ],
)
def test_a_generation_that_is_not_the_vendors_is_refused(fields):
    with pytest.raises(ValidationError, match="is described by"):
        card(**fields)


def test_an_unknown_field_is_refused():
    with pytest.raises(ValidationError, match="Extra inputs"):
        card(memory_gb=16)
