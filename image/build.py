"""Builds a guest image from the lock file, keeps it in the cache and installs it where a host looks.

Unprivileged and reproducible: the digest of an image depends on the lock file, the builder and the guest
code, not on the host, its user or the time.  Design and measurements: guest-image.md sections 1 and 5.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from enum import Enum
from pathlib import Path

from attest import lite, snp_launch
from core.errors import CasemateError
from core.files import locked
from image import container, manifest, ramdisk, recipe, tree, verity
from image.modules import Modules
from image.packages import LOCK_FILE, WHEEL, Package, Progress, fetch, parse_lock
from image.toolbox import Toolbox

KERNEL = "bzImage"
INITRD = "initramfs.cpio.gz"
ROOTFS = "rootfs.img.verity"
BIOS = "ovmf.fd"
SEV_BIOS = "ovmf-sev.fd"

# Finished images that stay in the cache, the last used ones; each has some 200 MB.
KEPT_IMAGES = 4

# dstack's command line (vmm.md section 7), with two differences: a panic ends the machine at once, and
# the kernel keeps what is no error to itself.
CMDLINE = (
    "console=ttyS0 init=/init panic=-1 quiet net.ifnames=0 biosdevname=0 mce=off oops=panic "
    "pci=noearly pci=nommconf random.trust_cpu=y random.trust_bootloader=n tsc=reliable no-kvmclock "
    "dstack.rootfs_hash={root.root_hash} dstack.rootfs_size={root.data_bytes}"
)


class Variant(Enum):
    """The two images: one without any login, one with a root shell on the serial console."""

    PRODUCTION = "casemate"
    DEV = "casemate-dev"

    @property
    def image_name(self) -> str:
        """The name of the image's folder."""
        return f"{self.value}-{recipe.VERSION}"


def build(
    variant: Variant, cache_dir: Path, progress: Progress, sev_firmware: Path | None = None
) -> Path:
    """The folder of the finished image in the cache; builds it unless one of the same content is there.

    With `sev_firmware`, an OVMF that binds the kernel, the image can be launched under SEV-SNP too.
    Raises what image.packages.fetch raises, core.proc.CommandFailed, and Invalid for unfit firmware.
    """
    finished = cache_dir / "images" / content_key(variant, sev_firmware)
    finished.parent.mkdir(parents=True, exist_ok=True)
    with locked(finished.parent / ".lock"):
        if finished.exists() and not _is_whole(finished):
            progress("discard", None, "the cached image was changed after it was built")
            shutil.rmtree(finished)
        if not finished.exists():
            packages = parse_lock(LOCK_FILE.read_text())
            debs = fetch(packages, cache_dir / "debs", progress)
            with tempfile.TemporaryDirectory(dir=finished.parent, prefix=".building-") as name:
                made = _make(variant, packages, debs, Path(name), progress, sev_firmware)
                made.rename(finished)
        os.utime(finished)
        _forget_all_but_newest(finished.parent)
    progress("ready", 1.0, f"{variant.image_name} in {finished}")
    return finished


def _forget_all_but_newest(folder: Path) -> None:
    images = [path for path in folder.iterdir() if not path.name.startswith(".")]
    for image in sorted(images, key=lambda path: path.stat().st_mtime)[:-KEPT_IMAGES]:
        shutil.rmtree(image)


def install(cached: Path, image_path: Path) -> Path:
    """Puts a finished image where the host looks for images and returns its folder there.

    Files become hard links, or copies on another file system, never symbolic links.  An image of the
    same name and another digest is replaced.
    """
    metadata, _ = manifest.read_metadata(cached)
    installed = image_path / str(metadata["name"])
    tree.make_folder(image_path)
    with locked(cached.parent / ".lock"):
        if not _is_same(cached, installed):
            _replace(cached, installed)
    return installed


def _replace(cached: Path, installed: Path) -> None:
    folder = installed.with_name(f".installing-{secrets.token_hex(8)}")
    folder.mkdir(mode=0o755)
    for path in cached.iterdir():
        _link_or_copy(path, folder / path.name)
    if installed.exists():
        old = installed.rename(installed.with_name(f".replaced-{secrets.token_hex(8)}"))
        folder.rename(installed)
        shutil.rmtree(old)
    else:
        folder.rename(installed)


def _is_same(cached: Path, installed: Path) -> bool:
    names = {path.name for path in cached.iterdir()}
    if not installed.is_dir() or names != {path.name for path in installed.iterdir()}:
        return False
    return all(
        os.path.samefile(cached / name, installed / name)
        or manifest.file_digest(cached / name) == manifest.file_digest(installed / name)
        for name in names
    )


def _is_whole(image: Path) -> bool:
    """Whether a cached image is still what was built: whoever wrote to an installed one wrote here too."""
    try:
        metadata, _ = manifest.read_metadata(image)
        root = verity.Root(str(metadata["rootfs_hash"]), int(str(metadata["rootfs_size"])))
        return not manifest.changed_files(image) and verity.is_intact(image / ROOTFS, root)
    except (CasemateError, KeyError, OSError, ValueError):
        return False


def content_key(variant: Variant, sev_firmware: Path | None = None) -> str:
    """64 hex digits that change whenever anything changes that the image is made from."""
    digest = hashlib.sha256(f"{variant.value}\n".encode())
    if sev_firmware is not None:
        digest.update(hashlib.sha256(sev_firmware.read_bytes()).digest())
    for package in ("image", *recipe.GUEST_CODE):
        for path in sorted((tree.SOURCES / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                executable = os.access(path, os.X_OK)
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(
                    f"{path.relative_to(tree.SOURCES)} {executable:d} {content}\n".encode()
                )
    return digest.hexdigest()


def _make(
    variant: Variant,
    packages: list[Package],
    files: dict[Package, Path],
    folder: Path,
    progress: Progress,
    sev_firmware: Path | None,
) -> Path:
    is_dev = variant is Variant.DEV
    tools = Toolbox(folder / "root", folder / "tools")
    progress("unpack", None, f"{len(packages)} packages")
    tree.unpack(_of(files, "root"), tools.root)
    tree.unpack(_of(files, "tool", "boot"), tools.tools)
    tree.unpack(_of(files, "kernel", "firmware"), folder / "host")
    modules = Modules(folder / "host")
    progress("assemble", None, "root file system")
    tree.assemble(tools, modules, _of(files, WHEEL), is_dev=is_dev)
    container.build(tools)
    image = folder / "image"
    image.mkdir(mode=0o755)
    progress("seal", None, "erofs and dm-verity")
    root = verity.build(tools, image / ROOTFS)
    progress("boot files", None, "kernel, initramfs and firmware")
    tree.put(image / INITRD, ramdisk.build(tools, modules))
    tree.put(image / KERNEL, (folder / "host/boot" / f"vmlinuz-{modules.version}").read_bytes())
    tree.put(image / BIOS, (folder / "host/usr/share/ovmf/OVMF.fd").read_bytes())
    metadata = _metadata(variant, root)
    if sev_firmware is not None:
        tree.put(image / SEV_BIOS, sev_firmware.read_bytes())
        metadata["bios-sev"] = SEV_BIOS
    measure(image, CMDLINE.format(root=root))
    covered = {path.name for path in image.iterdir()} - {ROOTFS}
    manifest.write(image, metadata, sorted(covered))
    return image


def measure(image: Path, cmdline: str) -> None:
    """Writes what verifiers need to know of an image: its TDX measurement, and SEV-SNP's with that firmware."""
    kernel, initrd, bios = ((image / name).read_bytes() for name in (KERNEL, INITRD, BIOS))
    tree.put(image / lite.FILE, lite.encode(lite.measure(kernel, initrd, cmdline, bios)))
    if (image / SEV_BIOS).exists():
        sev = snp_launch.measure(kernel, initrd, cmdline, (image / SEV_BIOS).read_bytes())
        tree.put(image / snp_launch.FILE, snp_launch.encode(sev))


def _of(files: dict[Package, Path], *kinds: str) -> list[Path]:
    return [path for package, path in files.items() if package.kind in kinds]


def _metadata(variant: Variant, root: verity.Root) -> dict[str, object]:
    return {
        "name": variant.image_name,
        "version": recipe.VERSION,
        "is_dev": variant is Variant.DEV,
        "kernel": KERNEL,
        "initrd": INITRD,
        "rootfs": ROOTFS,
        "rootfs_hash": root.root_hash,
        "rootfs_size": root.data_bytes,
        "cmdline": CMDLINE.format(root=root),
        "bios": BIOS,
        # Debian 13's OVMF is 2025.02.
        "ovmf_variant": lite.OVMF,
        "shared_ro": True,
    }


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        target.chmod(0o644)
