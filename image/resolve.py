"""`casemate image lock`: asks Debian's signed indices and PyPI which packages the recipe means today."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from core.errors import Upstream
from core.files import write_atomic
from core.proc import run
from image import recipe
from image.packages import LOCK_FILE, WHEEL, Package, Progress, format_lock, pip_download

_URI = re.compile(r"^'([^']+)' ", re.MULTILINE)


def lock(progress: Progress, path: Path = LOCK_FILE) -> list[Package]:
    """Resolves the recipe anew, rewrites the lock file and returns what it holds."""
    with tempfile.TemporaryDirectory(prefix="casemate-lock-") as name:
        folder = Path(name)
        progress("index", None, f"reading the indices of {recipe.SUITE}")
        debs = list(_debs(_Apt(folder)))
        progress("wheels", None, "asking PyPI")
        wheels = list(_wheels(folder / "wheels"))
    packages = [*debs, *wheels]
    write_atomic(path, format_lock(packages), 0o644)
    return packages


class _Apt:
    """apt with a state of its own: nothing of the host's but its proxies and its archive keys."""

    def __init__(self, folder: Path) -> None:
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "sources.list").write_text(_sources())
        (folder / "apt.conf").write_text(_configuration(folder))
        self._env = {"APT_CONFIG": str(folder / "apt.conf")}
        self._ask("apt-get", "update", "--error-on=any")

    def closure(self, names: Sequence[str]) -> list[str]:
        """URLs of the packages and of all that they depend on."""
        return _URI.findall(self._ask("apt-get", "install", "--yes", "--print-uris", *names))

    def single(self, names: Sequence[str]) -> list[str]:
        """URLs of the packages alone."""
        return _URI.findall(self._ask("apt-get", "download", "--print-uris", *names))

    def dependency(self, name: str) -> str:
        """The first package that a meta package depends on."""
        match = re.search(
            r"^ *Depends: (\S+)$", self._ask("apt-cache", "depends", name), re.MULTILINE
        )
        if not match:
            raise Upstream(f"{name} depends on nothing")
        return match[1]

    def records(self, urls: Iterable[str]) -> dict[str, Mapping[str, str]]:
        """The index record of each URL."""
        by_file = {}
        names = sorted({unquote(url.rsplit("/", 1)[-1]).split("_")[0] for url in urls})
        for block in self._ask("apt-cache", "show", *names).split("\n\n"):
            fields = dict(
                re.findall(r"^(Package|Version|Size|SHA256|Filename): (.*)$", block, re.MULTILINE)
            )
            if fields:
                by_file[fields["Filename"]] = fields
        # A URL is a mirror's address, `/`, and the record's file name.
        return {
            url: fields
            for url in urls
            for file, fields in by_file.items()
            if unquote(url).endswith("/" + file)
        }

    def _ask(self, *argv: str) -> str:
        return run(argv, env=self._env, timeout_s=900).stdout.decode()


def _sources() -> str:
    options = f"[arch=amd64 signed-by={recipe.KEYRING}]"
    return (
        f"deb {options} {recipe.MIRROR} {recipe.SUITE} main\n"
        f"deb {options} {recipe.MIRROR} {recipe.SUITE}-updates main\n"
        f"deb {options} {recipe.SECURITY_MIRROR} {recipe.SUITE}-security main\n"
    )


def _configuration(folder: Path) -> str:
    return (
        f'Dir::State "{folder}";\n'
        f'Dir::State::status "{folder}/status";\n'
        f'Dir::Cache "{folder}/cache";\n'
        f'Dir::Etc::sourcelist "{folder}/sources.list";\n'
        'Dir::Etc::sourceparts "/dev/null";\n'
        'Dir::Etc::preferences "/dev/null";\n'
        'Dir::Etc::preferencesparts "/dev/null";\n'
        'APT::Architecture "amd64";\n'
        'APT::Architectures "amd64";\n'
        'APT::Install-Recommends "0";\n'
        # As root, apt would drop to a user who may not read this folder.
        'APT::Sandbox::User "root";\n'
        'Acquire::Languages "none";\n'
    )


def _debs(apt: _Apt) -> Iterator[Package]:
    urls: dict[str, str] = {}
    for url in apt.closure(recipe.ROOT_PACKAGES):
        urls[url] = "root"
    kernel = apt.dependency(recipe.KERNEL_META_PACKAGE)
    for kind, names in (
        ("kernel", (kernel,)),
        ("boot", recipe.BOOT_PACKAGES),
        ("firmware", recipe.FIRMWARE_PACKAGES),
    ):
        for url in apt.single(names):
            urls[url] = kind
    for url in apt.closure(recipe.TOOL_PACKAGES):
        urls.setdefault(url, "tool")
    records = apt.records(urls)
    for url, kind in urls.items():
        fields = records[url]
        if fields["Package"] not in recipe.EXCLUDED_PACKAGES:
            yield Package(
                kind,
                fields["Package"],
                fields["Version"],
                int(fields["Size"]),
                fields["SHA256"],
                url,
            )


def _wheels(folder: Path) -> Iterator[Package]:
    run([*pip_download(folder), *recipe.WHEELS], timeout_s=900)
    for path in sorted(folder.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        yield Package(WHEEL, name, version, path.stat().st_size, digest, path.name)
