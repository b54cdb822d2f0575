"""NUMA: which processors and devices are near which memory of the host (vmm.md section 8)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from core.errors import Invalid
from vmm.qemu import HUGE_PAGES, NumaNode

GIB_IN_MB = 1024
KB_IN_GIB = 1024**2
_KB = {"K": 1, "M": 1024}


def cpus(root: Path, node: int) -> str:
    """The processors of a node as the kernel lists them ("0-15,32-47"); Invalid when there is no such node."""
    try:
        return (root / f"sys/devices/system/node/node{node}/cpulist").read_text().strip()
    except FileNotFoundError:
        raise Invalid(
            f"this host says nothing of NUMA node {node}; "
            "start the VM without pin_numa and hugepages"
        ) from None


def node_of(root: Path, slot: str) -> int:
    """The node that a PCI device is near; 0 where the kernel does not say."""
    try:
        text = (root / f"sys/bus/pci/devices/{slot}/numa_node").read_text().strip()
    except FileNotFoundError:
        return 0
    return int(text) if re.fullmatch(r"\d{1,4}", text) else 0


def free_gib(root: Path, node: int) -> int:
    """Whole GiB that nobody uses of a node's huge pages, of the one size that QEMU is given.

    Invalid when none are mounted where QEMU looks for them.
    """
    kb = _page_kb(root)
    folder = root / f"sys/devices/system/node/node{node}/hugepages/hugepages-{kb}kB"
    try:
        return kb * int((folder / "free_hugepages").read_text()) // KB_IN_GIB
    except FileNotFoundError:
        return 0


def _page_kb(root: Path) -> int:
    # A mount has pages of one size; the kernel writes it in K or M.
    mounts = (root / "proc/mounts").read_text().splitlines()
    for _, place, kind, options, *_ in map(str.split, reversed(mounts)):
        size = re.search(r"\bpagesize=(\d+)([KM])", options)
        if (place, kind) == (HUGE_PAGES, "hugetlbfs") and size:
            return int(size[1]) * _KB[size[2]]
    raise Invalid.field(
        "hugepages", f"this host has none at {HUGE_PAGES}; mount a hugetlbfs there, or leave it out"
    )


def spread(nodes: Sequence[int], vcpu: int, memory_mb: int) -> tuple[NumaNode, ...]:
    """A VM's processors and memory in equal parts on host nodes: both rounded up, memory to whole GiB each."""
    cpus_each = -(-vcpu // len(nodes))
    gib_each = -(-memory_mb // (GIB_IN_MB * len(nodes)))
    return tuple(
        NumaNode(node, index * cpus_each, (index + 1) * cpus_each - 1, gib_each)
        for index, node in enumerate(nodes)
    )


def check_free(root: Path, nodes: Sequence[NumaNode]) -> None:
    """Invalid naming the node that has too few free huge pages: QEMU would end with a bus error."""
    for node in nodes:
        free = free_gib(root, node.host_node)
        if free < node.memory_gib:
            raise Invalid.field(
                "hugepages",
                f"node {node.host_node} of this host has {free} GiB of free huge pages and "
                f"{node.memory_gib} are needed; reserve more (vm.nr_hugepages) or ask for less memory",
            )
