"""The folder of one VM (vmm.md section 6): names in one place, every file whole or absent."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import faults
from core.files import UNFINISHED, sync_directory, write_atomic
from vmm.host import Account

_REMOVE_TRIES = 5
# The networks as launched: the row may say by now what the next start is to have.
NETWORKS = "runtime-networks.json"


@dataclass(frozen=True)
class WorkDir:
    """Paths inside the folder of one VM."""

    path: Path

    @property
    def shared(self) -> Path:
        """The files that the guest is given."""
        return self.path / "shared"

    @property
    def data_disk(self) -> Path:
        """The qcow2 disk that the guest encrypts."""
        return self.path / "hda.img"

    @property
    def shared_image(self) -> Path:
        """The FAT copy of `shared`."""
        return self.path / "shared.img"

    @property
    def serial_log(self) -> Path:
        """What the guest's console printed."""
        return self.path / "serial.log"

    @property
    def serial_pty(self) -> Path:
        """Leads to the terminal on which a dev image's shell listens; absent with any other image."""
        return self.path / "serial.pty"

    @property
    def host_socket(self) -> Path:
        """Where the guest asks the host."""
        return self.path / "host.sock"

    @property
    def guest_socket(self) -> Path:
        """Where the host asks the guest."""
        return self.path / "guest.sock"

    @property
    def guest_cid(self) -> Path:
        """Holds the vsock number of a running guest; absent when it has virtio-serial."""
        return self.path / "guest.cid"

    @property
    def lock(self) -> Path:
        """Held while a verb or the sweep works on this VM; beside the folder, which may come and go."""
        return self.path.with_name(f".{self.path.name}.lock")

    def make(self) -> None:
        """Makes the folder; an existing one is kept."""
        for path in (self.path, self.shared):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def drop_unfinished(self) -> None:
        """Deletes what a writer left that was killed: a guest is given every file of its folder."""
        for path in (self.path, self.shared):
            for left in path.glob(f"*{UNFINISHED}"):
                left.unlink(missing_ok=True)

    def begin_boot(self, cid: int | None) -> None:
        """Clears what a former boot left for others to connect to, and notes the guest's vsock number."""
        for stale in ("qmp.sock", "host.sock", "guest.sock", self.serial_pty.name):
            (self.path / stale).unlink(missing_ok=True)
        if cid is None:
            self.guest_cid.unlink(missing_ok=True)
        else:
            write_atomic(self.guest_cid, str(cid))

    def companion(self, name: str, account: Account | None) -> Path:
        """The folder of a program beside QEMU; only `run` in it belongs to the user that the program is."""
        folder = self.path / name
        for path in (folder, folder / "run"):
            path.mkdir(mode=0o700, exist_ok=True)
        if account is not None:
            os.chown(folder, -1, account.gid)
            folder.chmod(0o710)
            os.chown(folder / "run", account.uid, account.gid)
        return folder

    def open_to(self, account: Account) -> None:
        """Lets another user's QEMU work here: it opens what it needs and makes its sockets.

        The folder is sticky and every file stays ours, so that it can replace none by a link of its own.
        """
        os.chown(self.path, -1, account.gid)
        self.path.chmod(0o1770)
        for path in (self.data_disk, self.shared_image, self.serial_log):
            if path.exists():
                os.chown(path, -1, account.gid)
                path.chmod(0o660)
        for path in (self.shared, *self.shared.iterdir()):
            os.chown(path, -1, account.gid)
            path.chmod(0o750 if path.is_dir() else 0o640)

    def share(self, name: str, content: bytes | str) -> None:
        """Writes one file for the guest."""
        write_atomic(self.shared / name, content)
        faults.point("folder.shared")

    def share_json(self, name: str, value: Any) -> None:
        """Writes one JSON file for the guest."""
        self.share(name, json.dumps(value))

    def unshare(self, name: str) -> None:
        """Takes one file away from the guest's next boot."""
        (self.shared / name).unlink(missing_ok=True)

    def mirror(self, name: str, value: Any) -> None:
        """Writes one JSON mirror of the record, for import and repair; the row stays the truth."""
        write_atomic(self.path / name, json.dumps(value, indent=1))
        faults.point("folder.mirrored")

    def log(self, channel: str) -> Path:
        """The file of a log channel: serial, stdout or stderr."""
        return self.path / f"{channel}.log"

    def remove(self) -> None:
        """Deletes the folder, with what a late log or a guest's last word puts into it meanwhile."""
        for patience in reversed(range(_REMOVE_TRIES)):
            try:
                shutil.rmtree(self.shared, ignore_errors=True)
                faults.point("remove.half")
                shutil.rmtree(self.path)
            except FileNotFoundError:
                if not self.path.exists():
                    return
            except OSError as error:
                if error.errno != errno.ENOTEMPTY or not patience:
                    raise
            else:
                sync_directory(self.path.parent)
                return
