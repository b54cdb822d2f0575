from __future__ import annotations

import json
import sqlite3
import stat
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli import backup as command
from cli.backup import load, save
from core import prpc
from core.config import Config
from core.errors import CasemateError, Conflict, Invalid, NotFound
from models.base import Database
from tests.common import rows
from tests.common.waiting import free_port
from vmm.host import Host
from vmm.schemas import Configuration, StatusQuery, StatusRequest, VmConfiguration
from vmm.service import Vms


def wanted(**fields: Any) -> Configuration:
    loaded: Configuration = prpc.load(VmConfiguration, rows.request(**fields))
    return loaded


def listing(vms: Vms) -> Any:
    query: StatusQuery = prpc.load(StatusRequest, {})
    return [
        # How long it runs, and whether, is no part of what a VM is.
        {key: vm[key] for key in ("id", "name", "app_id", "configuration")}
        for vm in vms.status(query)["vms"]
    ]


def restored(vms: Vms, data_dir: Path, host: Host) -> Vms:
    config = rows.config(data_dir, Path(vms.config.cvm.qemu_path))
    return Vms(config, Database(config.database), host)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "host.backup"


def test_a_restored_host_lists_the_same_vms_and_starts_them(
    vms: Vms, host: Host, file: Path, data_dir: Path
) -> None:
    kept = vms.create(wanted(ports=[rows.port(free_port())], encrypted_env="00ff"))
    vms.create(wanted(name="other", stopped=True))
    (vms.config.data_dir / "admin-token").write_text("cm_admin\n")

    ids, _ = save(vms.config, file, disks=False)

    before = listing(vms)
    vms.stop(kept)
    load(file, data_dir / "new")
    again = restored(vms, data_dir / "new", host)
    assert listing(again) == before
    assert [vm["id"] for vm in listing(again)] == ids
    assert (data_dir / "new/admin-token").read_text() == "cm_admin\n"
    shared = again.reconciler.workdir(kept).shared
    assert (shared / ".encrypted-env").read_bytes() == b"\x00\xff"
    assert (shared / ".instance_info").exists()
    rows.image(again.config.image.path)
    again.reconciler.one(kept, start=True)  # as the start of the service does
    started, _ = again.status(prpc.load(StatusRequest, {}))["vms"]
    assert started["status"] == "running"
    again.stop(kept)
    again.database.engine.dispose()


def test_a_backup_is_closed_to_others_and_so_is_what_is_made_of_it(
    vms: Vms, file: Path, tmp_path: Path
) -> None:
    vms.create(wanted())

    save(vms.config, file, disks=False)
    load(file, tmp_path / "new")

    for path in (file, tmp_path / "new", *(tmp_path / "new").rglob("*")):
        assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_neither_logs_nor_sockets_nor_processes_nor_images_are_saved(vms: Vms, file: Path) -> None:
    vm_id = vms.create(wanted())
    (vms.config.data_dir / "service.log").write_text("words")

    save(vms.config, file, disks=False)

    with tarfile.open(file) as archive:
        names = archive.getnames()
    assert {name.rpartition("/")[2] for name in names if name.startswith(f"vm/{vm_id}/")} == {
        *("app-compose.json", ".sys-config.json", ".instance_info", ".tee-simulator.json"),
        *("vm-manifest.json", "vm-state.json"),
    }
    assert {name for name in names if "/" not in name} >= {"casemate-backup.json", "casemate.db"}
    assert not [name for name in names if name.startswith("images") or name.endswith(".log")]


def test_disks_of_vms_at_rest_are_saved_when_asked_for(
    vms: Vms, file: Path, tmp_path: Path
) -> None:
    runs, rests = (vms.create(wanted()) for _ in range(2))
    vms.stop(rests)

    _, without = save(vms.config, file, disks=True)

    assert without == [runs]
    load(file, tmp_path / "new")
    disk = vms.reconciler.workdir(rests).data_disk
    assert (tmp_path / f"new/vm/{rests}/hda.img").read_bytes() == disk.read_bytes()
    assert not (tmp_path / f"new/vm/{runs}/hda.img").exists()


def test_the_commands_say_what_they_did(vms: Vms, file: Path, tmp_path: Path) -> None:
    vms.create(wanted())
    settings = tmp_path / "casemate.toml"
    settings.write_text(f'data_dir = "{vms.config.data_dir}"\n')

    saved = CliRunner().invoke(command.backup, [str(file), "-c", str(settings), "--disks"])
    made = CliRunner().invoke(command.restore, [str(file), "--data-dir", str(tmp_path / "new")])

    assert saved.output.startswith(f"{file}: 1 VMs, 0 data disks\n")
    assert "no disk was saved of VMs that run" in saved.output
    assert made.output.startswith(f"{tmp_path}/new: 1 VMs, 0 data disks\n")


def test_nothing_is_written_over(vms: Vms, file: Path, tmp_path: Path) -> None:
    save(vms.config, file, disks=False)
    before = file.read_bytes()

    with pytest.raises(Conflict, match="exists already"):
        save(vms.config, file, disks=False)
    with pytest.raises(Invalid, match="outside of the data directory"):
        save(vms.config, vms.config.data_dir / "x", disks=False)
    with pytest.raises(Conflict, match="is not empty"):
        load(file, tmp_path)

    assert file.read_bytes() == before


def test_a_host_without_a_database_has_nothing_to_save(config: Config, file: Path) -> None:
    with pytest.raises(NotFound, match="nothing to save"):
        save(config, file, disks=False)


def packed(file: Path, *members: tuple[tarfile.TarInfo, bytes], about: str = "") -> Path:
    first = tarfile.TarInfo("casemate-backup.json")
    text = (about or json.dumps({"format": 1, "vms": [], "disks": []})).encode()
    with tarfile.open(file, "w") as archive:
        for member, content in ((first, text), *members):
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    return file


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


@pytest.mark.parametrize(
    "hostile",
    [
        member("../outside"),
        member("vm/../../outside"),
        member("/tmp/outside"),
        member("vm//outside"),
        member("vm/a\nb"),
        member("."),
        member("vm/link", tarfile.SYMTYPE, "/etc"),
        member("vm/link", tarfile.LNKTYPE, "casemate.db"),
        member("vm/device", tarfile.CHRTYPE),
        member("vm/fifo", tarfile.FIFOTYPE),
        member("vm", tarfile.DIRTYPE),
    ],
    ids=lambda each: repr(each.name),
)
def test_an_archive_that_is_not_of_ours_leaves_nothing(
    file: Path, tmp_path: Path, hostile: tarfile.TarInfo
) -> None:
    packed(file, (hostile, b""))

    with pytest.raises(Invalid):
        load(file, tmp_path / "deeper/new")

    assert {path.name for path in tmp_path.iterdir()} == {file.name, "deeper"}
    assert list((tmp_path / "deeper").iterdir()) == []


def test_a_name_that_comes_twice_is_refused(file: Path, tmp_path: Path) -> None:
    packed(file, (member("tee/seed"), b"one"), (member("tee/seed"), b"two"))

    with pytest.raises(Invalid, match="twice"):
        load(file, tmp_path / "new")


@pytest.mark.parametrize("about", ["{}", '{"format": 2}', "[]", "nonsense"])
def test_a_file_of_another_kind_is_refused(file: Path, tmp_path: Path, about: str) -> None:
    with pytest.raises(Invalid, match="not a backup that this release"):
        load(packed(file, about=about), tmp_path / "new")


def test_a_backup_cut_off_anywhere_is_refused_whole(vms: Vms, file: Path, tmp_path: Path) -> None:
    vms.create(wanted())
    save(vms.config, file, disks=False)
    whole = file.read_bytes()

    # The last kilobytes are tar's padding.
    for size in range(0, len(whole) - 10240, len(whole) // 40):
        file.write_bytes(whole[:size])
        with pytest.raises(CasemateError):
            load(file, tmp_path / "new")
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [b"", b"not a database" * 100])
def test_a_damaged_database_is_refused(file: Path, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(Invalid, match="the database of the backup"):
        load(packed(file, (member("casemate.db"), content)), tmp_path / "new")


def test_a_backup_of_a_newer_release_is_refused(vms: Vms, file: Path, tmp_path: Path) -> None:
    with sqlite3.connect(vms.config.database) as plain:
        plain.execute("UPDATE alembic_version SET version_num = '9999'")
    plain.close()
    save(vms.config, file, disks=False)

    with pytest.raises(Conflict, match="newer release"):
        load(file, tmp_path / "new")
