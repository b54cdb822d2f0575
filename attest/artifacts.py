"""The published builds of SecretVM images, and what such a build measures of a compose file.

A build is known by the registers of a TDX quote or, on SEV-SNP, by what its launch digest is made from.
Source: secretvm.md section 8; public secretvm-verify (commit 32e020b), artifacts_registry/ and RTMR3's order.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import html
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from attest import snp_launch
from attest.errors import Malformed
from attest.eventlog import REGISTER_SIZE, extend, runtime_digest
from core.files import read_capped

MAX_FILE = 16 * 1024**2
MAX_BUILDS = 100_000

# The virtual processors of a size on SEV-SNP, which its launch digest depends on.
SEV_VCPUS = {"small": 1, "medium": 2, "large": 4, "2xlarge": 8}
_GUEST_FEATURES = 1

_TDX_COLUMNS = ("template_name", "vm_type", "artifacts_ver", "mrtd", "rtmr0", "rtmr1", "rtmr2",
                "rootfs_data", "host_id")  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_HEX = re.compile(r"(?:0x)?([0-9a-f]*)")
_VERSION = re.compile(r"v?(\d{1,9})\.(\d{1,9})\.(\d{1,9})(?:-([0-9A-Za-z.-]+))?(?:\+.*)?")
_PRE = re.compile(r"<pre[^>]*>(.*?)</pre>", re.DOTALL | re.IGNORECASE)

_Row = TypeVar("_Row")
_Build = TypeVar("_Build")

# MRTD and RTMR0 to 2, 48 bytes each.
Registers = tuple[bytes, bytes, bytes, bytes]


@dataclass(frozen=True)
class TdxBuild:
    """A build on machines of one size; `environment` is prod or dev, `host_id` empty where there is none."""

    size: str
    environment: str
    version: str
    registers: Registers
    rootfs: bytes
    host_id: bytes = b""


@dataclass(frozen=True)
class SevBuild:
    """A build for SEV-SNP: what is launched, but for the kernel's command line, which names the app."""

    environment: str
    version: str
    launched: snp_launch.Measurement
    rootfs: bytes
    vcpu_type: str
    cmdline_extra: str = ""

    def measurements(self, compose: bytes, docker_files: bytes, vcpus: int) -> Iterator[bytes]:
        """The launch digests (48 bytes) that a VM with this compose file may have.

        `docker_files` is the SHA-256 of their archive, empty without one.
        """
        line = (
            f"console=ttyS0 loglevel=7 docker_compose_hash={hashlib.sha256(compose).hexdigest()} "
            f"rootfs_hash={self.rootfs.hex()}"
        )
        if docker_files:
            line += f" docker_additional_files_hash={docker_files.hex()}"
        # The registry does not say where a build's further words stand.
        for each in dict.fromkeys((line, f"{line} {self.cmdline_extra}".rstrip())):
            described = replace(self.launched, cmdline=each)
            yield snp_launch.digest(described, vcpus, self.vcpu_type, _GUEST_FEATURES)


@dataclass(frozen=True)
class Registry:
    """All builds that are known, in no order; equal ones once."""

    tdx: tuple[TdxBuild, ...] = ()
    sev: tuple[SevBuild, ...] = ()
    _by_registers: Mapping[Registers, tuple[TdxBuild, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        found: dict[Registers, tuple[TdxBuild, ...]] = {}
        for build in dict.fromkeys(self.tdx):
            found[build.registers] = (*found.get(build.registers, ()), build)
        object.__setattr__(self, "_by_registers", found)

    def candidates(self, registers: Registers) -> tuple[TdxBuild, ...]:
        """The builds with exactly these registers, newest first; several differ in rootfs and version."""
        return newest_first(self._by_registers.get(registers, ()))

    def launched(self, environment: str, version: str) -> tuple[SevBuild, ...]:
        """The SEV-SNP builds of that name."""
        return tuple(
            build
            for build in dict.fromkeys(self.sev)
            if (build.environment, build.version) == (environment, version)
        )


def newest_first(builds: Iterable[TdxBuild]) -> tuple[TdxBuild, ...]:
    """Builds by semantic version: a release comes before its own pre-releases, no version last."""
    return tuple(sorted(builds, key=lambda build: version_key(build.version), reverse=True))


def version_key(version: str) -> tuple[object, ...]:
    """What versions are compared by (semver.org, section 11)."""
    match = _VERSION.fullmatch(version)
    if not match:
        return (-1, 0, 0, False, ())
    parts = (match[4] or "").split(".") if match[4] else []
    # Numbers are below words and compared as numbers.
    keys = tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)
    return (int(match[1]), int(match[2]), int(match[3]), not parts, keys)


# What a compose file measures


def compose_texts(given: bytes) -> tuple[bytes, ...]:
    """The bytes that a compose file may have been measured as: themselves, and what an HTML page of it shows.

    Older guests serve their compose file so, with zero-width spaces after line breaks.
    """
    try:
        page = _PRE.search(given.decode())
    except UnicodeDecodeError:
        page = None
    if page is None:
        return (given,)
    return given, html.unescape(page[1]).replace("\u200b", "").encode()


def rtmr3(compose: bytes, rootfs: bytes, docker_files: bytes = b"") -> bytes:
    """RTMR3 of the original scheme: digests padded to a register's size, docker files only where there are any."""
    entries = [hashlib.sha256(compose).digest(), rootfs]
    return _replayed([*entries, docker_files] if docker_files else entries)


def dstack_rtmr3(app_id: bytes, compose: bytes, rootfs: bytes, docker_files: bytes = b"") -> bytes:
    """RTMR3 of the images whose KMS is dstack's or gramine: four events of dstack's form."""
    events = [
        ("app-id", app_id),
        ("compose-hash", hashlib.sha256(compose).digest()),
        ("os-image-hash", rootfs),
    ]
    if docker_files:
        events.append(("docker-files-hash", docker_files))
    return _replayed([runtime_digest(name, payload) for name, payload in events])


def _replayed(entries: Sequence[bytes]) -> bytes:
    padded = (entry.ljust(REGISTER_SIZE, b"\0") for entry in entries)
    return functools.reduce(extend, padded, bytes(REGISTER_SIZE))


# The files of a registry


def read(folders: Sequence[Path]) -> Registry:
    """The builds of every registry file in some folders, of which any may be absent; files are read once."""
    files = [path for folder in folders for path in sorted(folder.glob("*"))]
    return _read(tuple((path, _stamp(path)) for path in files if path.suffix in _PARSERS))


def parse(name: str, content: bytes) -> Registry:
    """Reads a file in the form that its name's ending tells; Malformed names the row and what is wrong with it."""
    if Path(name).suffix not in _PARSERS:
        raise Malformed(f"{name}: must be a .csv in the form of tdx.csv or a .json of sev.json")
    try:
        return _PARSERS[Path(name).suffix](content.decode())
    except UnicodeDecodeError:
        raise Malformed(f"{name}: is not UTF-8 text") from None
    except Malformed as error:
        raise Malformed(f"{name}: {error.message}") from None


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=4)
def _read(files: tuple[tuple[Path, tuple[int, int, int]], ...]) -> Registry:
    found = [parse(path.name, read_capped(path, MAX_FILE)) for path, _ in files]
    return Registry(
        tuple(dict.fromkeys(build for each in found for build in each.tdx)),
        tuple(dict.fromkeys(build for each in found for build in each.sev)),
    )


def _parse_tdx(text: str) -> Registry:
    reader = csv.DictReader(io.StringIO(text))
    if missing := [name for name in _TDX_COLUMNS if name not in (reader.fieldnames or ())]:
        raise Malformed(f"the columns {', '.join(missing)} are missing")
    try:
        rows = list(reader)
    except csv.Error as error:
        raise Malformed(f"line {reader.line_num}: {error}") from None
    return Registry(tdx=tuple(_each(rows, _tdx_build)))


def _tdx_build(row: Mapping[str, object]) -> TdxBuild:
    mrtd, rtmr0, rtmr1, rtmr2 = (_bytes(row, name, REGISTER_SIZE) for name in _TDX_COLUMNS[3:7])
    return TdxBuild(
        size=_name(row, "template_name"),
        environment=_name(row, "vm_type"),
        version=_name(row, "artifacts_ver"),
        registers=(mrtd, rtmr0, rtmr1, rtmr2),
        rootfs=_bytes(row, "rootfs_data", 32),
        host_id=_bytes(row, "host_id", 48) if str(row["host_id"] or "").strip() else b"",
    )


def _parse_sev(text: str) -> Registry:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Malformed("must be a JSON list of objects")
    return Registry(sev=tuple(_each(entries, _sev_build)))


def _sev_build(entry: Mapping[str, object]) -> SevBuild:
    sections = entry.get("ovmf_sections")
    if not isinstance(sections, list) or not all(isinstance(each, dict) for each in sections):
        raise Malformed("ovmf_sections must be a list of objects")
    parts = ("gpa", "size", "section_type")
    build = SevBuild(
        environment=_name(entry, "vm_type"),
        version=_name(entry, "artifacts_ver"),
        launched=snp_launch.Measurement(
            cmdline="",
            ovmf_hash=_bytes(entry, "ovmf_hash", 48),
            kernel_hash=_bytes(entry, "kernel_hash", 32),
            initrd_hash=_bytes(entry, "initrd_hash", 32),
            hashes_table_gpa=_whole(entry, "sev_hashes_table_gpa"),
            reset_eip=_whole(entry, "sev_es_reset_eip"),
            sections=tuple(
                snp_launch.Section(*(_whole(each, part) for part in parts)) for each in sections
            ),
        ),
        rootfs=_bytes(entry, "rootfs_hash", 32),
        vcpu_type=_name(entry, "vcpu_type"),
        cmdline_extra=_words(entry, "cmdline_extra"),
    )
    # Whatever this refuses could never be compared with a report.
    next(build.measurements(b"", b"", 1))
    return build


_PARSERS: Mapping[str, Callable[[str], Registry]] = {".csv": _parse_tdx, ".json": _parse_sev}


def _each(rows: Sequence[_Row], read: Callable[[_Row], _Build]) -> Iterator[_Build]:
    if len(rows) > MAX_BUILDS:
        raise Malformed(f"has more than {MAX_BUILDS} entries")
    for number, row in enumerate(rows, 1):
        try:
            yield read(row)
        except Malformed as error:
            raise Malformed(f"entry {number}: {error.message}") from None


def _name(given: Mapping[str, object], key: str) -> str:
    value = given.get(key)
    text = value.strip() if isinstance(value, str) else ""
    if not _NAME.fullmatch(text):
        raise Malformed(f"{key} must be 1-64 letters, digits and _ . + -")
    return text


def _words(given: Mapping[str, object], key: str) -> str:
    value = given.get(key, "")
    if not isinstance(value, str) or len(value) > 1024 or not value.isprintable():
        raise Malformed(f"{key} must be a line of text")
    return value.strip()


def _bytes(given: Mapping[str, object], key: str, size: int) -> bytes:
    value = given.get(key)
    match = _HEX.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if not match or len(match[1]) != 2 * size:
        raise Malformed(f"{key} must be {2 * size} hex digits")
    return bytes.fromhex(match[1])


def _whole(given: Mapping[str, object], key: str) -> int:
    value = given.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise Malformed(f"{key} must be a whole number below 2^32")
    return value
