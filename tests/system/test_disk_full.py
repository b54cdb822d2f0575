"""A data directory that fills up: plain refusals, nothing half made, and all well again when there is room."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.common import rows
from tests.common.promises import breaches, is_settled, look
from tests.common.service import RunningService
from tests.common.waiting import free_port, until

FREE_KIB = (0, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3072, 4096, 5120)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="cm-", dir="/tmp"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a file system of its own cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
    folder.rmdir()


@pytest.fixture
def service(small_disk: Path, fake_qemu: Path, tmp_path: Path) -> Iterator[RunningService]:
    rows.image(tmp_path / "images")
    running = RunningService(
        small_disk / "data",
        tmp_path / "images",
        extra=f'qemu_path = "{fake_qemu}"\naccel = "tcg"\n[server]\nworkers = 1\nthreads = 4\n',
    )
    running.start()
    yield running
    running.end()


def fill(folder: Path, but_kib: int) -> Path:
    """Uses up a file system but for so many KiB."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    size = filler.stat().st_size
    os.truncate(filler, max(0, size - but_kib * 1024))
    return filler


def test_a_full_disk_is_told_and_survived(service: RunningService, small_disk: Path) -> None:
    kept = service.call("prpc/CreateVm", **rows.request())["id"]
    before = look(service)
    said: dict[int, str] = {}

    for free in FREE_KIB:
        filler = fill(small_disk, free)
        answer = service.request(
            "POST", "/prpc/CreateVm", json=rows.request(ports=[rows.port(free_port())])
        )
        said[free] = f"{answer.status_code} {answer.text}"
        still = look(service)
        filler.unlink()
        made = {answer.json()["id"]} if answer.status_code == 200 else set()
        until(lambda: is_settled(service) and look(service).keys() == {kept} | made)  # noqa: B023
        assert breaches(service, {kept} | made, set()) == [], said
        assert still[kept].process == look(service)[kept].process == before[kept].process
        for vm_id in made:
            service.call("prpc/RemoveVm", id=vm_id)
        until(lambda: look(service) == before)

    refused = [text for text in said.values() if not text.startswith("200")]
    assert len(refused) > 3, said
    assert all(text.startswith("503") for text in refused), said
    assert all("disk of this host is full" in text for text in refused), said
    assert said[FREE_KIB[-1]].startswith("200"), said
