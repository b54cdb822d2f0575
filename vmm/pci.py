"""What PCI devices are called, in the words of `lspci -nn`: from the pci.ids file where it is installed.

Format of that file: https://pci-ids.ucw.cz - vendors and classes in column one, their devices and subclasses
after a tab.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from vmm.gpu import Device

NAMES = Path("usr/share/misc/pci.ids")


def descriptions(found: Iterable[Device], root: Path) -> dict[str, str]:
    """For each slot something like `3D controller: NVIDIA Corporation GH100 [10de:2335]`; ids without names."""
    try:
        names = (root / NAMES).read_text(errors="replace")
    except OSError:
        names = ""
    return {each.slot: _describe(each, names) for each in found}


def _describe(device: Device, names: str) -> str:
    vendor_id, _, product_id = device.product_id.partition(":")
    group, subclass = device.class_code[:2], device.class_code[2:4]
    class_name, kind = _find(names, f"C {group}", subclass)
    vendor, product = _find(names, vendor_id, product_id)
    what = kind or class_name or f"Class {group}{subclass}"
    name = f"{vendor} {product or 'Device'}" if vendor else "Device"
    return f"{what}: {name} [{device.product_id}]"


def _find(names: str, above: str, below: str) -> tuple[str, str]:
    """The name of a vendor or class and that of one entry below it, "" for what is not known."""
    block = re.search(rf"^{above}  (.*)\n((?:[\t#].*\n)*)", names, re.MULTILINE)
    if not block:
        return "", ""
    entry = re.search(rf"^\t{below}  (.*)$", block[2], re.MULTILINE)
    return block[1], entry[1] if entry else ""
