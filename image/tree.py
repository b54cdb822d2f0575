"""Puts the root file system together in a folder: packages, then by hand what their scripts would do.

No maintainer script runs, nothing is mounted and nothing needs root.  Steps: guest-image.md section 5.
"""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from core.proc import run
from image import recipe
from image.modules import Modules
from image.toolbox import Toolbox

SOURCES = Path(__file__).parent.parent
OVERLAY = Path(__file__).parent / "rootfs"
DIST_PACKAGES = "usr/lib/python3/dist-packages"

_DOC = "usr/share/doc"
# Whose rights the SSH server has before it knows who is calling (openssh-server's postinst makes it).
_SSHD = "sshd:*:100:65534:sshd:/run/sshd:/usr/sbin/nologin\n"
_PROGRAMS = ("usr/bin", "usr/sbin")


def unpack(debs: Iterable[Path], folder: Path) -> None:
    """Unpacks the packages into one tree, a few at a time: no two hold the same file."""
    folder.mkdir()
    first, *rest = sorted(
        debs, key=lambda path: (not path.name.startswith("base-files_"), path.name)
    )
    # base-files brings the links /bin, /lib and /sbin, which others write through.
    _unpack(first, folder)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(lambda deb: _unpack(deb, folder), rest))


def _unpack(deb: Path, folder: Path) -> None:
    archive = run(["dpkg-deb", "--fsys-tarfile", deb]).stdout
    # tar as an ordinary user would apply the umask and as root the owners: neither may show.
    argv = ["tar", "--extract", "--directory", str(folder), "--keep-directory-symlink"]
    argv += ["--preserve-permissions", "--no-same-owner"]
    argv += [f"--exclude=./{path}" for path in recipe.PRUNED]
    run(argv, input=archive)


def assemble(tools: Toolbox, modules: Modules, wheels: Iterable[Path], *, is_dev: bool) -> None:
    """Makes a root file system of the unpacked packages in `tools.root`."""
    root = tools.root
    _keep_only_copyrights(root / _DOC)
    _accounts(root)
    _certificates(root)
    _kernel_modules(tools, modules)
    for wheel in wheels:
        _wheel(wheel, root / DIST_PACKAGES)
    for package in recipe.GUEST_CODE:
        copy_tree(SOURCES / package, root / DIST_PACKAGES / package)
    copy_tree(OVERLAY, root)
    _identity(root, is_dev=is_dev)
    _applets(tools)
    _byte_code(tools)


def put(path: Path, content: bytes | str, mode: int = 0o644) -> None:
    """Writes a file, and the folders above it, with modes that do not depend on the umask."""
    make_folder(path.parent)
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)


def make_folder(path: Path, mode: int = 0o755) -> None:
    """Makes a folder and those above it where they are missing."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir()
    path.chmod(mode)


def copy_tree(source: Path, target: Path) -> None:
    """Copies a folder of the checkout: its files, of their modes only whether they are executable."""
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if path.is_file() and "__pycache__" not in relative.parts:
            mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
            put(target / relative, path.read_bytes(), mode)


def _keep_only_copyrights(folder: Path) -> None:
    for package in folder.iterdir():
        if package.is_symlink() or not package.is_dir():
            continue
        for path in package.iterdir():
            if path.name == "copyright":
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _accounts(root: Path) -> None:
    """The accounts of Debian's base-passwd; no password opens any of them."""
    masters = root / "usr/share/base-passwd"
    passwd = (masters / "passwd.master").read_text() + _SSHD
    put(root / "etc/passwd", passwd.replace(":*:", ":x:"))
    put(root / "etc/group", (masters / "group.master").read_text().replace(":*:", ":x:"))
    names = [line.split(":")[0] for line in passwd.splitlines()]
    put(root / "etc/shadow", "".join(f"{name}:*:::::::\n" for name in names), 0o600)
    shutil.rmtree(masters)


def _certificates(root: Path) -> None:
    bundle = b"".join(
        path.read_bytes().rstrip() + b"\n"
        for path in sorted((root / "usr/share/ca-certificates/mozilla").iterdir())
    )
    put(root / "etc/ssl/certs/ca-certificates.crt", bundle)


def _kernel_modules(tools: Toolbox, modules: Modules) -> None:
    folder = tools.root / "usr/lib/modules" / modules.version
    for name in modules.in_load_order(modules.below(recipe.ROOT_MODULES)):
        put(folder / modules.path(name), modules.content(name))
    for path in sorted(modules.directory.glob("modules.*")):
        put(folder / path.name, path.read_bytes())
    tools.run("usr/sbin/depmod", "-b", tools.root, modules.version)
    for path in folder.glob("modules.*"):
        path.chmod(0o644)


def _wheel(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            if not entry.is_dir():
                mode = 0o755 if entry.filename.endswith(".so") else 0o644
                put(folder / entry.filename, archive.read(entry), mode)


def _identity(root: Path, *, is_dev: bool) -> None:
    variant = "dev" if is_dev else "production"
    put(
        root / "usr/lib/os-release",
        f'PRETTY_NAME="Casemate {recipe.VERSION} ({variant})"\n'
        'NAME="Casemate"\n'
        "ID=casemate\n"
        "ID_LIKE=debian\n"
        f'VERSION_ID="{recipe.VERSION}"\n'
        f"VARIANT_ID={variant}\n",
    )
    if is_dev:
        # init starts a root shell on the serial console where this file is.
        put(root / "etc/casemate/dev", "")


def applets(tools: Toolbox) -> list[str]:
    """The names that busybox answers to, but for those that could let somebody in."""
    names = set(tools.run("usr/bin/busybox", "--list").split()) - {"busybox"}
    return sorted(names - recipe.EXCLUDED_APPLETS)


def _applets(tools: Toolbox) -> None:
    """Links them where no program has the name."""
    root = tools.root
    for name in applets(tools):
        if not any(os.path.lexists(root / folder / name) for folder in _PROGRAMS):
            (root / _PROGRAMS[0] / name).symlink_to("busybox")


def _byte_code(tools: Toolbox) -> None:
    """Compiles all Python: a guest could not keep what it compiles, and would do so at every boot."""
    folders = [tools.root / "usr/lib/python3.13", tools.root / DIST_PACKAGES]
    tools.python(
        "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", tools.root, "-p", "/", *folders
    )  # fmt: skip
    for folder in folders:
        for cache in folder.rglob("__pycache__"):
            cache.chmod(0o755)
            for path in cache.iterdir():
                path.chmod(0o644)
