"""Where a job without an image runs: the guest's own files, with all that the job writes kept apart and wiped after it.

An overlay on the data disk over the guest's root, entered with chroot.  It keeps one job's traces from the next one of
the same owner; it is no wall against root, who has the VM to himself.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.errors import Invalid
from core.proc import run

# What `scp` and editors speak to, and what it needs, which a container is lent: few images have any of it.
SFTP = "/usr/lib/openssh/sftp-server"
LIBRARIES, LENT = "/usr/lib", "/run/casemate/lib"
# Mounted in the room as they are in the guest.
_SHARED = ("/proc", "/sys", "/dev")
# What the guest offers its app (guest-agent.md section 1), in the room at the same place.
# (An overlay shows the files of sockets, but nobody answers there.)
_SOCKETS = ("/var/run/dstack.sock", "/var/run/tappd.sock", "/var/run/dstack")


@dataclass(frozen=True)
class Account:
    """Who a process is: numbers as the kernel knows them, and what it finds in its environment."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str

    @classmethod
    def find(cls, user: str) -> Account:
        """The account that `NAME`, `UID`, `NAME:GROUP` or `UID:GID` stands for; Invalid when there is none."""
        name, _, group = user.partition(":")
        try:
            found = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
            named, home, uid, gid = found.pw_name, found.pw_dir, found.pw_uid, found.pw_gid
        except (KeyError, OverflowError):
            if not name.isdigit():
                raise Invalid.field(
                    "user", f"there is no user {name[:64]!r} in the guest"
                ) from None
            named, home, uid, gid = name, "/", int(name), int(name)
        groups = tuple(os.getgrouplist(named, gid))
        if group:
            gid = _group(group)
            groups = (gid,)
        return cls(named, uid, gid, groups, home)


def _group(group: str) -> int:
    if group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise Invalid.field("user", f"there is no group {group[:64]!r} in the guest") from None


def entrance(root: str, account: Account, folder: str) -> Callable[[], None]:
    """What a new process does to become one of the room: its root ("" for none), folder and user.

    Calls the system and nothing else, since it runs between fork and exec.
    """

    def enter() -> None:
        if root:
            os.chroot(root)
        try:
            os.chdir(folder)
        except FileNotFoundError:
            os.makedirs(folder)
            os.chown(folder, account.uid, account.gid)
            os.chdir(folder)
        if os.geteuid() == 0:
            os.setgroups(account.groups)
            os.setgid(account.gid)
            os.setuid(account.uid)

    return enter


@dataclass(frozen=True)
class Room:
    """The room of one job at a time, below a folder of the data disk."""

    folder: Path

    @property
    def root(self) -> Path:
        """What the job has as `/`."""
        return self.folder / "root"

    def make(self) -> None:
        """Makes an empty room."""
        for name in ("root", "changed", "work"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        layers = f"lowerdir=/,upperdir={self.folder}/changed,workdir={self.folder}/work"
        run(["mount", "-t", "overlay", "-o", layers, "overlay", self.root])
        for path in _SHARED:
            run(["mount", "--rbind", path, f"{self.root}{path}"])
        for path in filter(os.path.exists, _SOCKETS):
            self._lend(Path(path))
        (self.root / "tmp").chmod(0o1777)

    def _lend(self, path: Path) -> None:
        here = Path(f"{self.root}{path}")
        if path.is_dir():
            here.mkdir(parents=True, exist_ok=True)
        elif not here.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            here.touch()
        run(["mount", "--bind", path, here])

    def wipe(self) -> None:
        """Takes the room away with all that was written in it; nothing happens when there is none."""
        if not self.folder.exists():
            return
        for place in reversed(_mounts_below(self.root)):
            # Lazily: a process that resists its end must not keep the next job waiting.
            run(["umount", "-l", place], check=False)
        if _mounts_below(self.root):
            raise OSError(f"{self.root} is still mounted")
        shutil.rmtree(self.folder)


def _mounts_below(root: Path) -> list[str]:
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            place = line.split()[1].encode().decode("unicode_escape")
            if place == str(root) or place.startswith(f"{root}/"):
                found.append(place)
    return found
