"""A data directory that fills up: plain refusals, nothing half made, and all well again when there is room."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from tests.common import rows
from tests.common.promises import breaches, is_settled, look
from tests.common.service import RunningService
from tests.common.waiting import free_port, until
from vmm import process
from vmm.service import Vms

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


def settled_on(service: RunningService, ids: set[str]) -> bool:
    with contextlib.suppress(AssertionError):
        return until(lambda: is_settled(service) and look(service).keys() == ids, seconds=30)
    return False


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
        assert settled_on(service, {kept, *made}), (look(service), said, service.log.read_text())
        assert breaches(service, {kept, *made}, set()) == []
        assert still[kept].process == look(service)[kept].process == before[kept].process
        for vm_id in made:
            service.call("prpc/RemoveVm", id=vm_id)
        assert settled_on(service, {kept}), (look(service), said)

    refused = [text for text in said.values() if not text.startswith("200")]
    assert len(refused) > 3, said
    assert all(text.startswith("503") for text in refused), said
    assert [text for text in refused if "disk of this host is full" not in text] == []
    assert said[FREE_KIB[-1]].startswith("200"), said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_write_that_fails_anywhere_in_a_creation_leaves_nothing(
    app: Flask, vms: Vms, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    client = app.test_client()
    kept = client.post("/prpc/CreateVm", json=rows.request()).json["id"]  # type: ignore[index]
    before = process.find(vms.reconciler.workdir(kept).path)
    sync, failed = os.fsync, 0

    for fails_at in itertools.count(1):
        passes = itertools.count(1)

        def fail(fd: int, passes: Iterator[int] = passes, fails_at: int = fails_at) -> None:
            if next(passes) == fails_at:
                raise OSError(number, os.strerror(number))
            sync(fd)

        monkeypatch.setattr(os, "fsync", fail)
        answer = client.post("/prpc/CreateVm", json=rows.request())
        monkeypatch.setattr(os, "fsync", sync)
        if answer.status_code == 200:
            break
        failed += 1
        assert answer.status_code == 503
        assert answer.json is not None
        assert answer.json["message"].startswith("the disk of this host ")
        listed = client.post("/prpc/Status", json={}).json
        assert [vm["id"] for vm in listed["vms"]] == [kept]  # type: ignore[index]
        assert [path.name for path in vms.config.run_path.iterdir() if path.is_dir()] == [kept]
        assert process.find(vms.reconciler.workdir(kept).path) == before

    assert failed > 8
