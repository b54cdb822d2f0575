from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.config_cvm import GpuConfig
from core.errors import Invalid
from vmm import gpu

H100, SWITCH, OTHER_GPU, NETWORK = "0000:3b:00.0", "0000:41:00.0", "0001:3b:00.0", "0000:05:00.0"
SETTINGS = GpuConfig(enabled=True, listing=("10DE:2335", "8086:1572"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A /sys with two GPUs, a switch and a network card."""
    for slot, vendor, device, kind in (
        (H100, "10de", "2335", "030200"),
        (SWITCH, "10de", "22a3", "068000"),
        (OTHER_GPU, "10de", "2330", "030200"),
        (NETWORK, "8086", "1572", "020000"),
    ):
        folder = tmp_path / "sys/bus/pci/devices" / slot
        folder.mkdir(parents=True)
        for name, value in (("vendor", vendor), ("device", device), ("class", kind)):
            (folder / name).write_text(f"0x{value}\n")
    (tmp_path / "sys/bus/pci/drivers/vfio-pci").mkdir(parents=True)
    driver = tmp_path / "sys/bus/pci/devices" / H100 / "driver"
    driver.symlink_to("../../drivers/vfio-pci")
    return tmp_path


def slots(found: tuple[gpu.Device, ...]) -> list[str]:
    return [device.slot for device in found]


def test_the_inventory_is_what_the_configuration_lists(root: Path) -> None:
    found = gpu.inventory(root, SETTINGS)

    assert slots(found) == [NETWORK, H100]
    assert found[1] == gpu.Device(H100, "10de:2335", "030200", "vfio-pci")
    assert found[0].driver == ""
    assert gpu.inventory(root, GpuConfig()) == ()  # off
    assert gpu.inventory(root / "nowhere", SETTINGS) == ()


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"exclude": ("3B:00.0",)}, [NETWORK]),
        ({"include": (H100,)}, [H100]),
        ({"include": (H100,), "exclude": (H100,)}, []),
    ],
)
def test_slots_are_left_out_and_let_in(
    root: Path, limits: dict[str, tuple[str, ...]], left: list[str]
) -> None:
    settings = GpuConfig(enabled=True, listing=SETTINGS.listing, **limits)  # type: ignore[arg-type]

    assert slots(gpu.inventory(root, settings)) == left


def test_all_means_every_gpu_and_switch_of_nvidias(root: Path) -> None:
    found = gpu.requested({"attach_mode": "all"}, root, SETTINGS)

    assert slots(found) == [H100, SWITCH, OTHER_GPU]
    assert [device.is_switch for device in found] == [False, True, False]


@pytest.mark.parametrize("wanted", [None, {}, {"gpus": [], "attach_mode": "listed"}])
def test_nothing_asked_for_is_nothing_and_needs_no_permission(wanted: Any, root: Path) -> None:
    assert gpu.requested(wanted, root, GpuConfig()) == ()


@pytest.mark.parametrize("slot", ["3b:00.0", "0000:3b:00.0", "0000:3B:00.0"])
def test_a_slot_is_taken_with_and_without_its_domain(slot: str, root: Path) -> None:
    wanted = {"gpus": [{"slot": slot}], "attach_mode": "listed"}

    assert slots(gpu.requested(wanted, root, SETTINGS)) == [H100]


@pytest.mark.parametrize(
    ("wanted", "settings", "match"),
    [
        ({"gpus": [{"slot": H100}]}, GpuConfig(), r"cvm\.gpu\.enabled"),
        ({"attach_mode": "some"}, SETTINGS, r"gpus\.attach_mode: must be listed or all"),
        ({"gpus": [{"slot": "3b"}]}, SETTINGS, "is no PCI slot"),
        ({"gpus": [{"slot": "3b:00.0,x=y"}]}, SETTINGS, "is no PCI slot"),
        ({"gpus": [{"slot": OTHER_GPU}]}, SETTINGS, r"gpus\.gpus\[0\]\.slot: .* ListGpus"),
        ({"gpus": [{"slot": H100}, {"slot": "3b:00.0"}]}, SETTINGS, "asked for twice"),
        (
            {"attach_mode": "all"},
            GpuConfig(enabled=True, allow_attach_all=False),
            "allow_attach_all",
        ),
    ],
)
def test_what_may_not_be_had_is_refused_with_its_reason(
    root: Path, wanted: dict[str, Any], settings: GpuConfig, match: str
) -> None:
    with pytest.raises(Invalid, match=match):
        gpu.requested(wanted, root, settings)


def test_all_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no NVIDIA GPU"):
        gpu.requested({"attach_mode": "all"}, tmp_path, SETTINGS)
