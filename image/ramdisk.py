"""The initramfs: a static busybox, dmsetup with its libraries, a few kernel modules and our stage 1."""

from __future__ import annotations

from pathlib import Path

from image import recipe
from image.cpio import Archive
from image.modules import Modules
from image.toolbox import Toolbox

SOURCES = Path(__file__).parent / "initramfs"

# What stage 1 calls by name; Debian's busybox does not look for its own programs first.
_APPLETS = (
    "cat",
    "chroot",
    "cp",
    "grep",
    "insmod",
    "mkdir",
    "mount",
    "poweroff",
    "sleep",
    "switch_root",
)
_FOLDERS = ("dev", "proc", "sys", "guard", "verified", "writable", "root")


def build(tools: Toolbox, modules: Modules) -> bytes:
    """The initramfs as an uncompressed archive; compressing it would cost more than it saves."""
    archive = Archive()
    for folder in _FOLDERS:
        archive.folder(folder)
    # The kernel opens it for stage 1 before anything is mounted.
    archive.character_device("dev/console", 5, 1)
    archive.add("init", (SOURCES / "init").read_bytes(), 0o755)
    for script in ("guard", "scrub"):
        archive.add(f"bin/{script}", (SOURCES / script).read_bytes())
    archive.add("bin/busybox", (tools.root / "usr/bin/busybox").read_bytes(), 0o755)
    for applet in _APPLETS:
        archive.link(f"bin/{applet}", "busybox")
    _dmsetup(archive, tools)
    _modules(archive, modules)
    return archive.to_bytes()


def _dmsetup(archive: Archive, tools: Toolbox) -> None:
    program = tools.tools / "usr/sbin/dmsetup"
    archive.add("bin/dmsetup", program.read_bytes(), 0o755)
    for path in tools.libraries(program):
        archive.add(f"lib/{path.name}", path.read_bytes(), 0o755)
    archive.add(f"lib64/{tools.loader.name}", tools.loader.read_bytes(), 0o755)


def _modules(archive: Archive, modules: Modules) -> None:
    ordered = modules.in_load_order(recipe.BOOT_MODULES)
    for name in (*ordered, *recipe.CONDITIONAL_BOOT_MODULES):
        archive.add(f"lib/modules/{Path(modules.path(name)).name}", modules.content(name))
    order = "".join(f"{Path(modules.path(name)).name}\n" for name in ordered)
    archive.add("lib/modules/order", order.encode())
