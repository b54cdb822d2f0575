"""PCI devices that VMs may be given: found in sysfs, chosen by [cvm.gpu] (vmm.md section 9)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config_cvm import GpuConfig
from core.errors import Invalid

NVIDIA = "10de"
_SLOT = re.compile(r"(?:([0-9a-f]{4}):)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])")
# PCI class codes, the first two bytes: 3D controller, and any bridge (an NVSwitch is one).
_CLASS_3D, _BRIDGE = "0302", "06"


@dataclass(frozen=True)
class Device:
    """One PCI device; `product_id` is vendor:product, `driver` "" for none."""

    slot: str
    product_id: str
    class_code: str
    driver: str

    @property
    def is_switch(self) -> bool:
        """Whether it is an NVSwitch rather than a GPU."""
        return self.class_code.startswith(_BRIDGE)


def canonical(slot: str) -> str:
    """A slot with its domain, in lower case: 3b:00.0 is 0000:3b:00.0.  Invalid when it is none."""
    match = _SLOT.fullmatch(slot.lower())
    if not match:
        raise Invalid.field("gpus", f"{slot[:32]!r} is no PCI slot like 0000:3b:00.0")
    return f"{match[1] or '0000'}:{match[2]}"


def inventory(root: Path, settings: GpuConfig) -> tuple[Device, ...]:
    """The devices below `root`/sys that the configuration lets VMs have, by slot."""
    if not settings.enabled:
        return ()
    listing = {each.lower() for each in settings.listing}
    return tuple(
        each
        for each in devices(root)
        if each.product_id in listing and _is_open(each.slot, settings)
    )


def everything(root: Path, settings: GpuConfig) -> tuple[Device, ...]:
    """What `attach_mode` all means: every GPU and NVSwitch of NVIDIA's that is not excluded."""
    return tuple(
        each
        for each in devices(root)
        if each.product_id.startswith(NVIDIA)
        and each.class_code.startswith((_CLASS_3D, _BRIDGE))
        and _is_open(each.slot, settings)
    )


def requested(
    wanted: Mapping[str, Any] | None, root: Path, settings: GpuConfig
) -> tuple[Device, ...]:
    """The devices that a VM's `gpus` ask for; Invalid names what this host does not give."""
    wanted = wanted or {}
    mode = wanted.get("attach_mode") or "listed"
    slots = [canonical(each["slot"]) for each in wanted.get("gpus") or []]
    if mode not in ("listed", "all"):
        raise Invalid.field("gpus.attach_mode", "must be listed or all")
    if not slots and mode == "listed":
        return ()
    if not settings.enabled:
        raise Invalid.field("gpus", "this host gives no GPUs to VMs (cvm.gpu.enabled)")
    if mode == "all":
        if not settings.allow_attach_all:
            raise Invalid.field("gpus.attach_mode", "all is not allowed (cvm.gpu.allow_attach_all)")
        found = everything(root, settings)
        if not found:
            raise Invalid.field("gpus", "this host has no NVIDIA GPU to give")
        return found
    known = {each.slot: each for each in inventory(root, settings)}
    for index, slot in enumerate(slots):
        if slot not in known:
            raise Invalid.field(f"gpus.gpus[{index}].slot", f"{slot} is none of ListGpus")
        if slot in slots[:index]:
            raise Invalid.field(f"gpus.gpus[{index}].slot", f"{slot} is asked for twice")
    return tuple(known[slot] for slot in slots)


def devices(root: Path) -> list[Device]:
    """All PCI devices below `root`/sys, by slot."""
    folder = root / "sys/bus/pci/devices"
    if not folder.is_dir():
        return []
    return [_device(path) for path in sorted(folder.iterdir()) if _SLOT.fullmatch(path.name)]


def _device(path: Path) -> Device:
    def read(name: str) -> str:
        return (path / name).read_text().strip().removeprefix("0x")

    driver = path / "driver"
    return Device(
        slot=path.name,
        product_id=f"{read('vendor')}:{read('device')}",
        class_code=read("class"),
        driver=driver.resolve().name if driver.exists() else "",
    )


def _is_open(slot: str, settings: GpuConfig) -> bool:
    excluded = {canonical(each) for each in settings.exclude}
    included = {canonical(each) for each in settings.include}
    return slot not in excluded and (not included or slot in included)
