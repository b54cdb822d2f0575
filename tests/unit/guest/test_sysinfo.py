"""System figures from a stand-in for /proc, /sys and /etc."""

from __future__ import annotations

from pathlib import Path

import pytest

from guest import sysinfo
from guest.sysinfo import Disk

FILES = {
    "etc/os-release": 'NAME="Casemate \\"OS\\""\nVERSION_ID=0.5.11\n',
    "etc/resolv.conf": "# by DHCP\nsearch example\nnameserver 10.0.2.3\nnameserver fd00::3\n",
    "proc/sys/kernel/osrelease": "6.12.0\n",
    "proc/meminfo": "MemTotal: 100 kB\nMemFree: 20 kB\nMemAvailable: 40 kB\nSwapTotal: 8 kB\n"
    "SwapFree: 5 kB\nHugePages_Total: 0\n",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Test CPU\ncpu MHz\t\t: 2596.124\n\n"
    "processor\t: 1\nmodel name\t: Test CPU\ncpu MHz\t\t: 2596.124\n",
    "proc/loadavg": "0.07 1.50 12.25 1/100 1234\n",
    "proc/uptime": "62.99 100.00\n",
    "proc/mounts": "overlay / overlay rw 0 0\n",
    "proc/net/route": "Iface\tDestination\tGateway\tFlags\n"
    "nosuch0\t00000000\t0202000A\t0003\nnosuch0\t0002000A\t00000000\t0001\n",
    "proc/net/if_inet6": "fe800000000000000000000000000001 02 40 20 80 eth7\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for card in ("eth7", "lo", "docker0"):
        folder = tmp_path / "sys/class/net" / card / "statistics"
        folder.mkdir(parents=True)
        for number, counter in enumerate(("rx_bytes", "tx_bytes", "rx_errors", "tx_errors")):
            (folder / counter).write_text(f"{number}\n")
    return tmp_path


def test_figures_are_in_bytes_seconds_and_hundredths(root: Path) -> None:
    info = sysinfo.system(root, (Path("/"), Path("/not-mounted")))

    assert (info.os_version, info.kernel_version) == ("0.5.11", "6.12.0")
    assert (info.cpu_model, info.num_cpus) == ("Test CPU @2596 MHz", 2)
    assert (info.total_memory, info.available_memory) == (102_400, 40_960)
    assert (info.used_memory, info.free_memory) == (61_440, 20_480)
    assert (info.total_swap, info.used_swap, info.free_swap) == (8192, 3072, 5120)
    assert info.uptime == 62
    assert (info.loadavg_one, info.loadavg_five, info.loadavg_fifteen) == (7, 150, 1225)
    assert [disk.mount_point for disk in info.disks] == ["/"]
    assert info.disks[0].total_size > info.disks[0].free_size > 0


def test_only_real_cards_are_shown(root: Path) -> None:
    info = sysinfo.network(root)

    assert info.dns_servers == ["10.0.2.3", "fd00::3"]
    assert [gateway.address for gateway in info.gateways] == ["10.0.2.2"]
    (card,) = info.interfaces
    assert (card.name, card.rx_bytes, card.tx_errors) == ("eth7", 0, 3)
    assert [(one.address, one.prefix) for one in card.addresses] == [("fe80::1", 64)]


def test_the_cloud_is_empty_when_unreadable(root: Path) -> None:
    assert sysinfo.cloud(root) == ("", "")

    folder = root / "sys/class/dmi/id"
    folder.mkdir(parents=True)
    (folder / "sys_vendor").write_text("QEMU\n")
    assert sysinfo.cloud(root) == ("QEMU", "")


def test_metrics_declare_every_name_once_and_escape_labels(root: Path) -> None:
    info = sysinfo.system(root, ())
    two = [Disk("/dev/a", "/", 100, 25), Disk("b\\\n", "/data", 0, 0)]

    text = sysinfo.metrics(type(info)(**{**vars(info), "disks": two}))

    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names)) == 20
    assert 'system_os_name{os_name="Casemate \\\\\\"OS\\\\"} 1' in text
    assert 'disk_usage_percentage{name="/dev/a",mount_point="/"} 75' in text
    assert 'disk_used_size{name="b\\\\\\n",mount_point="/data"} 0' in text
    assert "system_load_average_5m 150" in text
    for line in text.splitlines():
        assert line.startswith("# ") or line.split("{")[0].split()[0] in names
