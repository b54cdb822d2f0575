"""What a SecretVM's app needs before it starts: the sign-in to a registry, and the files beside its compose file.

Source: secretvm.md section 3; Docker CLI's config.json (auths).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from core import files
from core.errors import Invalid

REGISTRY = "DSTACK_DOCKER_REGISTRY"
USERNAME = "DSTACK_DOCKER_USERNAME"
PASSWORD = "DSTACK_DOCKER_PASSWORD"
CREDENTIALS = (REGISTRY, USERNAME, PASSWORD)
# What Docker Hub is called among a client's sign-ins.
_DOCKER_HUB = "https://index.docker.io/v1/"
_HUB_NAMES = ("", "docker.io", "index.docker.io", "registry-1.docker.io", "hub.docker.com")
MAX_DOCKER_FILES = 10 * 1024**2
MAX_MEMBERS = 10_000


def split(variables: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The variables that the app gets, and those for the registry, which its containers never see."""
    own = {name: value for name, value in variables.items() if name not in CREDENTIALS}
    return own, {name: value for name, value in variables.items() if name in CREDENTIALS}


def sign_in(credentials: Mapping[str, str], home: Path) -> None:
    """Keeps a sign-in where whoever pulls images looks for it; none without a password."""
    if not credentials.get(PASSWORD):
        return
    host = credentials.get(REGISTRY, "").removeprefix("https://").rstrip("/")
    pair = f"{credentials.get(USERNAME, '')}:{credentials[PASSWORD]}"
    entry = {"auth": base64.b64encode(pair.encode()).decode()}
    name = _DOCKER_HUB if host in _HUB_NAMES else host
    folder = home / ".docker"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_atomic(folder / "config.json", json.dumps({"auths": {name: entry}}))


def put_docker_files(user_config: bytes, expected: bytes, work: Path) -> None:
    """Unpacks the tar of docker files that the host gave into the work folder, if its hash was measured.

    Raises Invalid when it is not there, is another one, or holds anything that does not belong there.
    """
    if not expected:
        return
    raw = _docker_files(user_config)
    if not hmac.compare_digest(hashlib.sha256(raw).digest(), expected):
        raise Invalid("the docker files are not those whose hash the app-compose names")
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
            for path, member in _checked(tar, work):
                _put(tar, member, path)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise Invalid(f"the docker files cannot be unpacked: {error}") from None


def _docker_files(user_config: bytes) -> bytes:
    try:
        given = json.loads(user_config)["docker_files"]
        raw = base64.b64decode(given, validate=True)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise Invalid("the app-compose names docker files, but the host gave none") from None
    if len(raw) > MAX_DOCKER_FILES:
        raise Invalid(f"the docker files have more than {MAX_DOCKER_FILES} bytes")
    return raw


def _checked(tar: tarfile.TarFile, work: Path) -> list[tuple[Path, tarfile.TarInfo]]:
    """The members and where they go; Invalid for one that is no file or folder in the work folder, or is there.

    Links are refused: no path that is made here leads anywhere else.
    """
    there = {path.name for path in work.iterdir()}
    found: list[tuple[Path, tarfile.TarInfo]] = []
    for member in tar:
        parts = PurePosixPath(member.name).parts
        if len(found) >= MAX_MEMBERS:
            raise Invalid(f"the docker files are more than {MAX_MEMBERS}")
        if not (member.isfile() or member.isdir()):
            raise Invalid(f"the docker files hold {member.name[:100]}, which is no file or folder")
        if member.name.startswith("/") or ".." in parts:
            raise Invalid(
                f"the docker files hold {member.name[:100]}, which leads out of its folder"
            )
        if parts and parts[0] in there:
            raise Invalid(f"the docker files would replace {parts[0]}")
        if parts:  # else the folder itself
            found.append((work.joinpath(*parts), member))
    return found


def _put(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    content = tar.extractfile(member)
    assert content is not None  # it is a file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.read())
    except OSError as error:
        raise Invalid(f"the docker files cannot be unpacked: {error}") from None
    path.chmod(0o755 if member.mode & 0o100 else 0o644)
