from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Invalid
from vmm import numa
from vmm.qemu import NumaNode


def test_processors_and_memory_are_spread_in_equal_parts() -> None:
    assert numa.spread([0], 3, 1500) == (NumaNode(0, 0, 2, 2),)
    assert numa.spread([1, 3], 5, 3000) == (NumaNode(1, 0, 2, 2), NumaNode(3, 3, 5, 2))


@given(
    st.lists(st.integers(0, 63), min_size=1, max_size=8, unique=True),
    st.integers(1, 4096),
    st.integers(1, 64 * 1024**2),
)
def test_nothing_asked_for_is_lost_and_little_is_added(
    nodes: list[int], vcpu: int, memory_mb: int
) -> None:
    parts = numa.spread(nodes, vcpu, memory_mb)

    assert [part.host_node for part in parts] == nodes
    assert parts[0].first_cpu == 0
    assert all(one.last_cpu + 1 == next_.first_cpu for one, next_ in itertools.pairwise(parts))
    assert vcpu <= parts[-1].last_cpu + 1 < vcpu + len(nodes)
    total = sum(part.memory_gib for part in parts) * 1024
    assert memory_mb <= total < memory_mb + len(nodes) * 1024


@pytest.mark.parametrize(("text", "node"), [("1\n", 1), ("-1\n", 0), ("", 0), (None, 0)])
def test_a_device_without_a_node_is_near_the_first(
    tmp_path: Path, text: str | None, node: int
) -> None:
    folder = tmp_path / "sys/bus/pci/devices/0000:3b:00.0"
    folder.mkdir(parents=True)
    if text is not None:
        (folder / "numa_node").write_text(text)

    assert numa.node_of(tmp_path, "0000:3b:00.0") == node


MOUNTS = """\
proc /proc proc rw 0 0
tmpfs /dev/hugepages tmpfs rw,size=4G 0 0
hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize={} 0 0
hugetlbfs /mnt/huge hugetlbfs rw,relatime,pagesize=16M 0 0
"""


@pytest.mark.parametrize(("mounted", "free"), [("2M", 1), ("2048K", 1), ("1024M", 3)])
def test_only_free_huge_pages_of_the_mounted_size_count(
    tmp_path: Path, mounted: str, free: int
) -> None:
    for size, pages in ((2048, 1023), (1048576, 3)):
        folder = tmp_path / f"sys/devices/system/node/node0/hugepages/hugepages-{size}kB"
        folder.mkdir(parents=True)
        (folder / "free_hugepages").write_text(f"{pages}\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/mounts").write_text(MOUNTS.format(mounted))

    assert numa.free_gib(tmp_path, 0) == free
    assert numa.free_gib(tmp_path, 1) == 0
    numa.check_free(tmp_path, [NumaNode(0, 0, 0, free)])
    with pytest.raises(Invalid, match=f"node 0 of this host has {free} GiB of free huge pages and"):
        numa.check_free(tmp_path, [NumaNode(0, 0, 0, free + 1)])


def test_a_host_that_mounts_no_huge_pages_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/mounts").write_text("tmpfs /dev/hugepages tmpfs rw 0 0\n")

    with pytest.raises(Invalid, match="hugepages: this host has none at /dev/hugepages"):
        numa.free_gib(tmp_path, 0)
