"""The guest image as built: reproducible, without logins, complete, and stopped by any changed byte."""

from __future__ import annotations

import functools
import os
import re
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from core import config, proc
from core.errors import NotFound, Upstream
from image import build, manifest, packages, registry, tree
from image.build import Variant
from image.registry import Image
from image.toolbox import Toolbox
from tests.common.waiting import until

ROOT_LINE = "casemate: boot failed: root file system does not match its hash (dm-verity)"

# What opens a way in: consoles, remote shells, and the agent through which a host runs commands.
LOGINS = {
    "agetty",
    "dropbear",
    "getty",
    "login",
    "mingetty",
    "qemu-ga",
    "su",
    "sudo",
    "sulogin",
    "telnetd",
}

# Enough to run fsck.erofs through the guest's own loader.
EROFS_TOOLS = {
    "base-files", "erofs-utils", "libc6", "libdeflate0", "liblz4-1", "liblzma5", "libpcre2-8-0", "libselinux1",
    "libuuid1", "libxxhash0", "libzstd1", "zlib1g",
}  # fmt: skip

# The path of a file in the image and how it is read: by stage 1 already, or later while Python starts.
EARLY, LATE = (
    "usr/sbin/init",
    "usr/lib/python3/dist-packages/guest/__pycache__/boot.cpython-313.pyc",
)
UNREAD = "usr/share/doc/aardvark-dns/copyright"


def silent(step: str, fraction: float | None, text: str) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(scope="module")
def image(image_dir: tuple[Path, str]) -> Image:
    return registry.load(*image_dir)


@pytest.fixture(scope="module")
def erofs(tmp_path_factory: pytest.TempPathFactory) -> Toolbox:
    """erofs's own programs, out of the packages the image was built with."""
    wanted = [
        p for p in packages.parse_lock(packages.LOCK_FILE.read_text()) if p.name in EROFS_TOOLS
    ]
    folder = tmp_path_factory.mktemp("erofs") / "tools"
    tree.unpack(packages.fetch(wanted, config.cache_dir() / "debs", silent).values(), folder)
    return Toolbox(folder, folder)


@pytest.fixture(scope="module")
def root(image: Image, erofs: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files of the root file system."""
    folder = tmp_path_factory.mktemp("root") / "files"
    erofs.run("usr/bin/fsck.erofs", f"--extract={folder}", "--no-preserve-owner", image.rootfs)
    yield folder
    shutil.rmtree(folder)


def copy_of(image: Image, folder: Path, *changeable: Path | None) -> Image:
    """The image in a folder of the test: links to its files, but for those that it will change."""
    target = folder / image.name
    target.mkdir()
    for path in image.directory.iterdir():
        if path in changeable:
            shutil.copyfile(path, target / path.name)
        else:
            os.link(path, target / path.name)
    return registry.load(folder, image.name)


def flip(path: Path, offset: int) -> None:
    """Changes one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def qemu(image: Image, serial: str) -> list[str]:
    """A machine with the image's root disk and nothing else."""
    argv = [
        "qemu-system-x86_64",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
    ]
    argv += [
        "-M",
        "q35",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max,cx16=off",
        "-smp",
        "2",
        "-m",
        "1024",
    ]
    argv += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", image.cmdline]
    argv += ["-drive", f"file={image.rootfs},if=none,id=root,format=raw,readonly=on"]
    argv += ["-device", "virtio-blk-pci,drive=root"]
    return [*argv, "-chardev", f"{serial},id=serial", "-serial", "chardev:serial"]


def boot(image: Image, folder: Path) -> list[str]:
    """Boots until the machine ends by itself and returns what its console showed."""
    serial = folder / "serial.log"
    proc.run(qemu(image, f"file,path={serial}"), timeout_s=240)
    return serial.read_text(errors="replace").splitlines()


def test_another_build_under_other_circumstances_gives_the_same_image(
    image: Image, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "debs").symlink_to(config.cache_dir() / "debs")
    umask = os.umask(0o077)
    request.addfinalizer(lambda: os.umask(umask))

    again = build.build(Variant.PRODUCTION, tmp_path, silent)

    names = sorted(path.name for path in again.iterdir())
    assert names == sorted(path.name for path in image.directory.iterdir())
    assert {name: manifest.file_digest(again / name) for name in names} == {
        name: manifest.file_digest(image.directory / name) for name in names
    }


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the URL under which it is served."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def kmod(url: str) -> packages.Package:
    """A package of seven bytes that nobody has."""
    return packages.Package("root", "kmod", "34.2-2", 7, "ab" * 32, f"{url}/kmod_34.2-2_amd64.deb")


def test_a_version_that_left_its_mirror_is_named_with_the_remedy(
    mirror: tuple[Path, str], tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match=r"kmod 34.2-2 .* `casemate image lock`"):
        packages.fetch([kmod(mirror[1])], tmp_path / "debs", silent)


def test_a_package_with_other_bytes_than_the_lock_file_says_is_refused(
    mirror: tuple[Path, str], tmp_path: Path
) -> None:
    (mirror[0] / "kmod_34.2-2_amd64.deb").write_bytes(b"another")

    with pytest.raises(Upstream, match="kmod 34.2-2 could not be downloaded"):
        packages.fetch([kmod(mirror[1])], tmp_path / "debs", silent)

    assert not list((tmp_path / "debs").glob("*.deb"))


def test_the_image_is_whole_and_marked_as_production(image: Image) -> None:
    assert registry.changed_files(image) == []
    assert not image.is_dev
    assert f"dstack.rootfs_hash={image.rootfs_hash}" in image.cmdline.split()


def test_a_production_image_has_no_login_of_any_kind(root: Path) -> None:
    programs = {
        path.name
        for folder in ("usr/bin", "usr/sbin", "usr/libexec", "usr/lib")
        for path in (root / folder).rglob("*")
    }
    shadow = [line.split(":") for line in (root / "etc/shadow").read_text().splitlines()]
    passwd = [line.split(":") for line in (root / "etc/passwd").read_text().splitlines()]

    assert not programs & LOGINS
    assert not (root / "etc/casemate/dev").exists()
    assert {entry[1] for entry in shadow} == {"*"}
    assert {entry[1] for entry in passwd} == {"x"}
    assert not (root / "root/.ssh").exists()
    assert not list((root / "etc").glob("systemd/**/*.service"))


def test_the_ssh_server_is_there_for_runs_and_nothing_starts_it(root: Path) -> None:
    candidates = [root / "usr/sbin/init", *(root / "etc").rglob("*")]
    candidates += (root / tree.DIST_PACKAGES / "guest").glob("*.py")
    started_by = [
        path.relative_to(root).as_posix()
        for path in candidates
        if path.is_file() and not path.is_symlink() and b"/usr/sbin/sshd" in path.read_bytes()
    ]

    assert (root / "usr/sbin/sshd").exists()
    assert started_by == [f"{tree.DIST_PACKAGES}/guest/job_ssh.py"]
    # No key of its own that others have too, nobody who may come in, no unit and no script for an init.
    assert not list((root / "etc/ssh").glob("ssh_host_*"))
    assert not list(root.glob("**/authorized_keys*"))
    assert not (root / "etc/init.d").exists()


def test_no_program_of_the_image_gives_its_caller_more_rights(root: Path) -> None:
    raised = [
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)
    ]

    assert raised == []


def test_everything_that_runs_in_the_guest_can_be_imported_there(root: Path) -> None:
    modules = sorted(
        ".".join(path.relative_to(tree.SOURCES).with_suffix("").parts)
        for package in ("guest", "attest_sim")
        for path in (tree.SOURCES / package).glob("*.py")
        if path.name != "__init__.py"
    )
    script = f"import sys; sys.path.append({str(root / tree.DIST_PACKAGES)!r})\n"
    script += "".join(f"import {module}\n" for module in modules)

    Toolbox(root, root).python("-c", script)


def test_all_python_is_compiled_for_the_guest(root: Path) -> None:
    sources = [
        p for p in (root / tree.DIST_PACKAGES).rglob("*.py") if p.parent.name != "__pycache__"
    ]
    missing = [
        path
        for path in sources
        if not (path.parent / "__pycache__" / f"{path.stem}.cpython-313.pyc").exists()
    ]

    assert len(sources) > 300
    assert missing == []


@pytest.mark.parametrize("part", ["kernel", "initrd", "bios"])
def test_a_changed_kernel_initramfs_or_firmware_is_named(
    image: Image, tmp_path: Path, part: str
) -> None:
    copy = copy_of(image, tmp_path, getattr(image, part))
    changed: Path = getattr(copy, part)

    flip(changed, changed.stat().st_size // 2)

    assert registry.changed_files(copy) == [changed.name]


def offset_of(file: str, image: Image, erofs: Toolbox) -> int:
    """Where the first bytes of a file lie in the root file system's image."""
    listing = erofs.run("usr/bin/dump.erofs", f"--path=/{file}", "-e", image.rootfs)
    match = re.search(r"^\s*0:\s+0\.\.\s*\d+\s+\|\s+\d+\s+:\s+(\d+)\.\.", listing, re.MULTILINE)
    assert match, listing
    return int(match[1])


@pytest.mark.parametrize("file", [EARLY, LATE, UNREAD])
def test_a_changed_byte_of_the_root_stops_the_boot_and_says_so(
    image: Image, erofs: Toolbox, tmp_path: Path, file: str
) -> None:
    copy = copy_of(image, tmp_path, image.rootfs)
    assert copy.rootfs

    flip(copy.rootfs, offset_of(file, image, erofs))

    assert ROOT_LINE in boot(copy, tmp_path)


def test_a_dev_image_has_a_shell_on_its_console_and_says_what_it_is(tmp_path: Path) -> None:
    cached = build.build(Variant.DEV, config.cache_dir(), silent)
    installed = build.install(cached, tmp_path)
    image = registry.load(tmp_path, installed.name)
    assert image.is_dev

    argv = qemu(image, "stdio")
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as machine:
        assert machine.stdin and machine.stdout
        to_shell, from_shell, said = machine.stdin, machine.stdout, bytearray()
        os.set_blocking(from_shell.fileno(), False)

        def answered() -> bool:
            to_shell.write(b". /etc/os-release; echo is-$VARIANT_ID\n")
            to_shell.flush()
            said.extend(from_shell.read() or b"")
            return b"is-dev" in said

        try:
            until(answered, seconds=120, what="the shell's answer")
        finally:
            machine.kill()
