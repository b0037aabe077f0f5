from importlib import metadata

import pytest
from packaging.requirements import Requirement

from planner.machine import doctor
from planner.machine.doctor import (
    TorchBuild,
    disk,
    formats,
    graphics_cards,
    has_kernels,
    packages,
    quantizer,
    torch_and_cards,
    torch_build,
)
from profiles.detect import DetectedGpu
from profiles.gpu_catalog import find_gpu

CUDA13 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
OLD = "no bf16 (fp16 stands in), no flash attention (slower kernels stand in)"
RESET = "sudo nvidia-smi --gpu-reset"
CUDA12 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")


@pytest.mark.parametrize(
    ("card", "archs", "runs"),
    [
        ("t4", CUDA13, True),
        ("v100", CUDA13, False),
        ("v100", CUDA12, True),
        ("rtx 4090", CUDA12, True),  # 8.9 runs code for 8.6: same major, older minor
        ("a100", ("sm_86",), False),
        ("h100", ("sm_90a",), True),
        ("b200", CUDA12, False),
        ("b200", ("compute_90",), True),
    ],
)
def test_a_card_runs_code_of_its_generation_or_older_ptx(card, archs, runs):
    assert has_kernels(archs, find_gpu(card)) is runs


def test_a_cpu_build_is_fine_without_a_card():
    assert torch_and_cards(TorchBuild("2.13.0+cpu", None, False, ()), []).status == "ok"


@pytest.mark.parametrize(
    ("card", "build", "message", "cure"),
    [
        ("t4", TorchBuild("2.13.0+cpu", None, False, ()), "built for a CPU", doctor.INSTALL_CUDA),
        ("v100", TorchBuild("2.13.0", "13.0", True, CUDA13), "no kernels for the V100", doctor.INSTALL_OLD_CARD),
        ("t4", TorchBuild("2.13.0", "13.0", False, ()), "driver is too old", doctor.INSTALL_OLD_CARD),
        (
            "t4",
            TorchBuild("2.13.0", "13.0", True, CUDA13, multiply="out of order"),
            "fails on the card: out of order",
            RESET,
        ),
        ("b200", TorchBuild("2.5.0", "12.6", True, CUDA12), "no kernels for the B200", doctor.INSTALL_CUDA),
    ],
)
def test_a_build_that_cannot_use_the_card_is_a_problem_with_its_cure(card, build, message, cure):
    finding = torch_and_cards(build, [find_gpu(card)])
    assert finding.status == "problem"
    assert message in finding.message
    assert finding.cure == cure


def test_a_matching_build_is_fine():
    assert torch_and_cards(TorchBuild("2.13.0", "13.0", True, CUDA13), [find_gpu("t4")]).status == "ok"


def test_a_missing_package_is_a_problem_with_the_command_that_installs_it():
    (finding,) = packages([Requirement("no-such-package-here>=1")])
    assert (finding.status, finding.message) == ("problem", "not installed")
    assert finding.cure == "pip install 'fitune[train]'"


def test_a_package_out_of_range_names_the_range():
    (finding,) = packages([Requirement("pytest<1")])
    assert finding.status == "problem"
    assert finding.cure == "pip install 'pytest<1'"


def test_a_package_in_range_is_fine():
    (finding,) = packages([Requirement("pytest>=1")])
    assert finding.status == "ok"


def test_without_an_installation_the_packages_are_not_judged():
    (finding,) = packages(None)
    assert finding.status == "warning"


def test_a_nearly_full_disk_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "ROOMY_DISK_BYTES", 1 << 60)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    finding = disk(tmp_path)
    assert finding.status == "warning"
    assert "free in" in finding.message


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("h100", "H100-SXM5-80GB: bf16, flash attention, int8, 4-bit"),
        ("t4", f"T4: int8, 4-bit, {OLD}"),
        ("v100-16gb", f"V100-SXM2-16GB: 4-bit, {OLD}, no int8 (nf4 stands in)"),
    ],
)
def test_what_a_card_computes_with_is_said(card, words):
    finding = formats(find_gpu(card))
    assert (finding.status, finding.message) == ("ok", words)


def test_a_quantizer_that_fails_is_a_problem_with_its_cure():
    broken = TorchBuild("2.13.0", "13.0", True, CUDA13, quantize="no kernel image is available")
    finding = quantizer(broken)
    assert (finding.status, finding.message) == (
        "problem",
        "bitsandbytes fails on the card: no kernel image is available",
    )
    assert finding.cure == "pip install --force-reinstall --no-deps bitsandbytes"
    assert quantizer(TorchBuild("2.13.0+cpu", None, False, ())).message == "bitsandbytes quantizes on the CPU"


def test_a_setting_that_hides_every_card_is_a_problem(monkeypatch):
    card = DetectedGpu(0, "GPU-1", "Tesla T4", find_gpu("t4"), 15 << 30, 14 << 30, (), "580.1", False, False)
    monkeypatch.setattr(doctor, "detect_gpus", lambda: (card,))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    _, findings = graphics_cards()
    assert [finding.status for finding in findings] == ["ok", "ok", "problem"]
    assert findings[-1].message == "CUDA_VISIBLE_DEVICES is '7', which hides every card"
    assert findings[-1].cure == "unset CUDA_VISIBLE_DEVICES"


@pytest.mark.slow
def test_this_machines_torch_is_tried_in_a_process_of_its_own():
    build = torch_build()
    assert build.version == metadata.version("torch")
    assert build.quantize is None
