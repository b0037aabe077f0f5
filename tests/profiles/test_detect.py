import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from profiles.detect import DetectedGpu, GpuProcess, detect_gpu, detect_gpus
from profiles.errors import EnvironmentFault
from profiles.gpu import GIB
from profiles.overheads import MIB


class NVMLError(Exception):
    pass


@dataclass
class Device:
    """What the driver knows of a card, or of a MIG instance of one."""

    name: str
    total_mib: int
    capability: tuple[int, int] = (8, 0)
    free_mib: int | None = None
    uuid: str = "GPU-0"
    processes: tuple[tuple[int, int | None], ...] = ()
    processes_hidden: bool = False
    display: int = 0
    mig: list["Device | None"] | None = None
    lost: bool = False


@dataclass
class Driver:
    """Stands for the pynvml module: the calls that detection makes, and the errors of the real library."""

    devices: list[Device] = field(default_factory=list)
    missing: bool = False
    open: int = 0
    NVMLError = NVMLError

    def nvmlInit(self):  # noqa: N802
        if self.missing:
            raise NVMLError("NVML Shared Library Not Found")
        self.open += 1

    def nvmlShutdown(self):  # noqa: N802
        self.open -= 1

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return "580.82.07"

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return self.devices[index]

    def nvmlDeviceGetName(self, device):  # noqa: N802
        return device.name

    def nvmlDeviceGetUUID(self, device):  # noqa: N802
        return device.uuid

    def nvmlDeviceGetMemoryInfo(self, device):  # noqa: N802
        if device.lost:
            raise NVMLError("GPU is lost")
        free = device.total_mib if device.free_mib is None else device.free_mib
        return SimpleNamespace(total=device.total_mib * MIB, free=free * MIB)

    def nvmlDeviceGetCudaComputeCapability(self, device):  # noqa: N802
        return device.capability

    def nvmlDeviceGetComputeRunningProcesses(self, device):  # noqa: N802
        if device.processes_hidden:
            raise NVMLError("Insufficient Permissions")
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in device.processes]

    def nvmlDeviceGetDisplayActive(self, device):  # noqa: N802
        return device.display

    def nvmlDeviceGetMigMode(self, device):  # noqa: N802
        if device.mig is None:
            raise NVMLError("Not Supported")
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, device):  # noqa: N802
        return len(device.mig)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device, slot):  # noqa: N802
        if device.mig[slot] is None:
            raise NVMLError("Not Found")
        return device.mig[slot]


@pytest.fixture
def machine(monkeypatch):
    """Puts a driver with these devices in the place of the machine's own."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(*devices: Device, **driver: object) -> Driver:
        stub = Driver(list(devices), **driver)
        monkeypatch.setitem(sys.modules, "pynvml", stub)
        return stub

    return install


def t4(**changes: object) -> Device:
    return Device(**({"name": "Tesla T4", "total_mib": 15360, "capability": (7, 5)} | changes))


def only(gpus: tuple[DetectedGpu, ...]) -> DetectedGpu:
    (gpu,) = gpus
    return gpu


def test_a_card_of_the_catalog_brings_its_profile(machine):
    machine(t4(free_mib=14913, uuid="GPU-1234"))
    gpu = only(detect_gpus())
    assert gpu.profile.name == "T4"
    assert (gpu.index, gpu.uuid, gpu.name, gpu.driver_version) == (0, "GPU-1234", "Tesla T4", "580.82.07")
    assert (gpu.total_bytes, gpu.free_bytes) == (15360 * MIB, 14913 * MIB)


def test_memory_tells_cards_of_one_name_apart(machine):
    machine(Device("NVIDIA GeForce RTX 4060 Ti", 8188), Device("NVIDIA GeForce RTX 4060 Ti", 16380))
    assert [gpu.profile.name for gpu in detect_gpus()] == ["RTX 4060 Ti 8GB", "RTX 4060 Ti 16GB"]


def test_switching_ecc_does_not_make_another_card(machine):
    machine(Device("NVIDIA A40", 49140, (8, 6)))
    assert only(detect_gpus()).profile.name == "A40"


def test_a_card_with_more_memory_than_the_catalogs_is_described_by_the_driver(machine):
    machine(Device("NVIDIA GeForce RTX 4080 SUPER", 32760, (8, 9)))
    profile = only(detect_gpus()).profile
    assert profile.memory_total_bytes == 32760 * MIB
    assert profile.flops.fp16 is None


def test_an_unknown_card_is_described_by_the_driver(machine):
    machine(Device("NVIDIA GeForce RTX 2060", 6144, (7, 5)))
    profile = only(detect_gpus()).profile
    assert (profile.name, profile.compute_capability) == ("NVIDIA GeForce RTX 2060", (7, 5))
    assert profile.memory_total_bytes == 6 * GIB
    assert profile.memory_bytes < 6 * GIB
    assert not profile.supports_bf16
    assert profile.notes is not None
    assert "not in the catalog" in profile.notes


def test_other_processes_are_listed(machine):
    machine(t4(processes=((4711, 300 * MIB), (4712, None)), free_mib=14000))
    assert only(detect_gpus()).processes == (GpuProcess(4711, 300 * MIB), GpuProcess(4712, None))


def test_processes_that_may_not_be_seen_are_left_out(machine):
    machine(t4(processes_hidden=True))
    assert only(detect_gpus()).processes == ()


def test_a_display_is_reported(machine):
    machine(t4(display=1))
    assert only(detect_gpus()).display_active


def test_mig_instances_take_the_place_of_their_card(machine):
    small = Device("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4864, uuid="MIG-1")
    large = Device("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 19968, uuid="MIG-2")
    machine(Device("NVIDIA A100-SXM4-40GB", 40960, uuid="GPU-1", mig=[small, None, large, None]))
    gpus = detect_gpus()
    assert [(gpu.index, gpu.uuid, gpu.total_bytes, gpu.is_mig_instance) for gpu in gpus] == [
        (0, "MIG-1", 4864 * MIB, True),
        (0, "MIG-2", 19968 * MIB, True),
    ]
    assert gpus[1].profile.compute_capability == (8, 0)
    assert gpus[1].profile.memory_bytes < 19968 * MIB


def test_a_card_in_mig_mode_without_instances_cannot_be_used(machine):
    machine(Device("NVIDIA A100-SXM4-40GB", 40960, mig=[None]))
    with pytest.raises(EnvironmentFault, match="finds no GPU"):
        detect_gpus()


def test_the_card_to_plan_for_has_most_free_memory(machine):
    machine(t4(free_mib=3000, uuid="GPU-a"), t4(free_mib=14000, uuid="GPU-b"))
    assert detect_gpu().uuid == "GPU-b"


@pytest.mark.parametrize(
    ("setting", "uuid"),
    [
        ("0", "GPU-a"),
        ("1", "GPU-b"),
        (" 0 , 1 ", "GPU-b"),
        ("GPU-a", "GPU-a"),
        ("0,7,1", "GPU-a"),
        ("GPU-b,GPU-a", "GPU-b"),
    ],
)
def test_cuda_visible_devices_is_honored(machine, monkeypatch, setting, uuid):
    machine(t4(free_mib=3000, uuid="GPU-a"), t4(free_mib=14000, uuid="GPU-b"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    assert detect_gpu().uuid == uuid


@pytest.mark.parametrize("setting", ["", "-1", "7", "GPU-x"])
def test_cuda_visible_devices_that_hides_all_is_a_fault(machine, monkeypatch, setting):
    machine(t4(uuid="GPU-a"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    with pytest.raises(EnvironmentFault, match="hides every GPU") as raised:
        detect_gpu()
    assert raised.value.hint == "unset it or choose from: 0 (Tesla T4)"


def test_a_missing_driver_is_told_in_a_sentence(machine):
    machine(missing=True)
    with pytest.raises(EnvironmentFault, match="no NVIDIA driver answers on this machine") as raised:
        detect_gpus()
    assert raised.value.hint is not None
    assert "--gpu t4" in raised.value.hint


def test_a_machine_without_cards_is_told_in_a_sentence(machine):
    machine()
    with pytest.raises(EnvironmentFault, match="finds no GPU"):
        detect_gpus()


def test_a_lost_card_is_told_in_a_sentence(machine):
    driver = machine(t4(lost=True))
    with pytest.raises(EnvironmentFault, match="GPU is lost"):
        detect_gpus()
    assert driver.open == 0


def test_the_driver_is_left_as_it_was_found(machine):
    driver = machine(t4())
    detect_gpus()
    assert driver.open == 0
