"""The container image that comes with the guest, laid out as a store of podman that nobody writes to.

Its one layer holds hard links to files that the root file system has anyway (busybox, Python and its
standard library), so it takes no room, needs no import at boot and is bound by the same root hash.
Layout: containers/storage's overlay driver and its layers.json and images.json.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

from image import tree
from image.toolbox import Toolbox

NAME = "localhost/casemate-hello:1"

# The path that rootfs/etc/containers/storage.conf names.
STORE = "usr/lib/casemate/images"

SAMPLE = Path(__file__).parent / "hello"

_PYTHON = "usr/lib/python3.13"
_CREATED = "1970-01-01T00:00:00Z"
_ENVIRONMENT = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG=C.UTF-8",
    "PYTHONUNBUFFERED=1",
)
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
_FOLDERS = (
    "dev",
    "etc",
    "home",
    "proc",
    "root",
    "run",
    "srv",
    "sys",
    "usr/sbin",
    "usr/local/bin",
    "var",
)
_FILES = (
    "etc/group",
    "etc/nsswitch.conf",
    "etc/passwd",
    "etc/services",
    "etc/ssl/certs/ca-certificates.crt",
    "usr/bin/busybox",
    "usr/bin/python3.13",
)


def build(tools: Toolbox) -> None:
    """Adds the store with the sample image to the root file system, which must be complete otherwise."""
    store = tools.root / STORE
    layer = store / "layer"
    _fill(tools, layer)
    diff, size = _tar_digest(layer)
    _add_layer(store, layer, diff, size)
    _add_image(store, diff, size)


def _fill(tools: Toolbox, layer: Path) -> None:
    root = tools.root
    for folder in _FOLDERS:
        tree.make_folder(layer / folder)
    for folder in ("tmp", "var/tmp"):
        (layer / folder).mkdir()
        (layer / folder).chmod(0o1777)
    for name, target in _LINKS.items():
        (layer / name).symlink_to(target)
    for file in (*_FILES, *_libraries(tools)):
        _share(root, layer, file)
    for path in sorted((root / _PYTHON).rglob("*")):
        if path.is_file() or path.is_symlink():
            _share(root, layer, str(path.relative_to(root)))
    for name in ("python3", "python"):
        (layer / "usr/bin" / name).symlink_to("python3.13")
    for name in tree.applets(tools):
        (layer / "usr/bin" / name).symlink_to("busybox")
    tree.put(layer / "etc/os-release", (root / "usr/lib/os-release").read_bytes())
    tree.put(layer / "app/app.py", (SAMPLE / "app.py").read_bytes())


def _share(root: Path, layer: Path, file: str) -> None:
    tree.make_folder((layer / file).parent)
    os.link(root / file, layer / file, follow_symlinks=False)


def _libraries(tools: Toolbox) -> set[str]:
    """The shared libraries that Python and its extension modules load, as paths in the root."""
    programs = [tools.root / "usr/bin/python3.13", *(tools.root / _PYTHON).rglob("*.so")]
    found = {library for program in programs for library in tools.libraries(program)}
    found.add(tools.loader)
    # Both the name that is asked for and the file that it is a link to.
    return {
        str(path.relative_to(tools.root))
        for library in found
        for path in (library, library.resolve())
    }


def _tar_digest(layer: Path) -> tuple[str, int]:
    """SHA-256 and size of the layer as a tar archive, which is what container tools know it by."""
    digest = _Digest()
    with tarfile.open(mode="w|", fileobj=digest, format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(layer.rglob("*")):
            archive.add(path, str(path.relative_to(layer)), recursive=False, filter=_anonymous)
    return digest.hash.hexdigest(), digest.size


class _Digest(io.RawIOBase):
    """A file that keeps the digest and size of what is written to it, and nothing else."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # tarfile writes bytes only
        self.hash.update(data)
        self.size += len(data)
        return len(data)


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mtime = 0
    return entry


def _add_layer(store: Path, layer: Path, diff: str, size: int) -> None:
    # Overlay mounts take short names of layers, since their options must fit one page.
    short = base64.b32encode(bytes.fromhex(diff))[:26].decode()
    folder = store / "overlay" / diff
    tree.put(folder / "link", short)
    layer.rename(folder / "diff")
    tree.make_folder(store / "overlay/l")
    (store / "overlay/l" / short).symlink_to(f"../{diff}/diff")
    record = {
        "id": diff,
        "created": _CREATED,
        "diff-digest": f"sha256:{diff}",
        "diff-size": size,
        "compressed-diff-digest": f"sha256:{diff}",
        "compressed-size": size,
        "uidset": [0],
        "gidset": [0],
    }
    tree.put(store / "overlay-layers/layers.json", _json([record]))
    tree.put(store / "overlay-layers/layers.lock", "")


def _add_image(store: Path, diff: str, size: int) -> None:
    config = _json(
        {
            "created": _CREATED,
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Cmd": ["python3", "/app/app.py"],
                "Env": list(_ENVIRONMENT),
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff}"]},
            "history": [{"created": _CREATED, "created_by": "casemate image build"}],
        }
    )
    image = hashlib.sha256(config).hexdigest()
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": f"sha256:{image}",
                "size": len(config),
            },
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": f"sha256:{diff}",
                    "size": size,
                }
            ],
        }
    )
    digest = hashlib.sha256(manifest).hexdigest()
    data = {f"sha256:{image}": config, "manifest": manifest, f"manifest-sha256:{digest}": manifest}
    for name, content in data.items():
        tree.put(store / "overlay-images" / image / _data_file(name), content)
    record = {
        "id": image,
        "digest": f"sha256:{digest}",
        "names": [NAME],
        "layer": diff,
        "metadata": "{}",
        "created": _CREATED,
        "big-data-names": list(data),
        "big-data-sizes": {name: len(content) for name, content in data.items()},
        "big-data-digests": {
            name: f"sha256:{hashlib.sha256(content).hexdigest()}" for name, content in data.items()
        },
    }
    tree.put(store / "overlay-images/images.json", _json([record]))
    tree.put(store / "overlay-images/images.lock", "")


def _data_file(name: str) -> str:
    """containers/storage writes names that are not plain as = and their base64."""
    plain = name.isascii() and name.replace(".", "").isalnum() and name == name.lower()
    return name if plain else "=" + base64.b64encode(name.encode()).decode()


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
