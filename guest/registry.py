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
            for member in _checked(tar, work):
                tar.extract(member, work, filter="data")
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


def _checked(tar: tarfile.TarFile, work: Path) -> list[tarfile.TarInfo]:
    """The members to unpack; Invalid when one would replace what is there already."""
    there = {path.name for path in work.iterdir()}
    found: list[tarfile.TarInfo] = []
    for member in tar:
        if len(found) >= MAX_MEMBERS:
            raise Invalid(f"the docker files are more than {MAX_MEMBERS}")
        if not (parts := PurePosixPath(member.name).parts):
            continue  # the folder itself
        if parts[0] in there:
            raise Invalid(f"the docker files would replace {parts[0]}")
        found.append(member)
    return found
