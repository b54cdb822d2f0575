from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from core.errors import Invalid
from guest import registry


def test_the_registrys_variables_are_kept_from_the_app() -> None:
    given = {"A": "1", registry.USERNAME: "u", registry.PASSWORD: "p", registry.REGISTRY: "r"}

    own, credentials = registry.split(given)
    assert own == {"A": "1"}
    assert set(credentials) == set(registry.CREDENTIALS)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("ghcr.io", "ghcr.io"),
        ("https://registry.test:5000/", "registry.test:5000"),
        ("", "https://index.docker.io/v1/"),
        ("docker.io", "https://index.docker.io/v1/"),
    ],
)
def test_a_sign_in_is_kept_where_compose_looks_for_it(tmp_path: Path, host: str, name: str) -> None:
    given = {registry.REGISTRY: host, registry.USERNAME: "me", registry.PASSWORD: "s:ecret"}
    registry.sign_in(given, tmp_path)

    file = tmp_path / ".docker/config.json"
    entry = json.loads(file.read_text())["auths"][name]
    assert base64.b64decode(entry["auth"]) == b"me:s:ecret"
    assert file.stat().st_mode & 0o777 == 0o600


def test_without_a_password_there_is_no_sign_in(tmp_path: Path) -> None:
    registry.sign_in({registry.USERNAME: "me"}, tmp_path)

    assert list(tmp_path.iterdir()) == []


def tar(*members: tarfile.TarInfo | tuple[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return packed.getvalue()


def put(work: Path, raw: bytes, expected: bytes | None = None) -> None:
    config = json.dumps({"docker_files": base64.b64encode(raw).decode()}).encode()
    hashed = hashlib.sha256(raw).digest() if expected is None else expected
    registry.put_docker_files(config, hashed, work)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "docker-compose.yaml").write_text("mine")
    return folder


def test_measured_files_are_put_beside_the_compose_file(work: Path) -> None:
    folder, program = tarfile.TarInfo("bin"), tarfile.TarInfo("bin/run")
    folder.type, program.mode = tarfile.DIRTYPE, 0o755
    put(work, tar(("./app/Dockerfile", b"FROM x\n"), ("usr/.env", b"A=1\n"), folder, program))

    assert (work / "bin/run").stat().st_mode & 0o777 == 0o755

    assert (work / "app/Dockerfile").read_bytes() == b"FROM x\n"
    assert (work / "usr/.env").read_bytes() == b"A=1\n"


def test_files_that_were_not_measured_are_not_looked_at(work: Path) -> None:
    put(work, tar(("a", b"b")), b"")

    assert [path.name for path in work.iterdir()] == ["docker-compose.yaml"]


def test_other_files_than_the_measured_ones_end_the_boot(work: Path) -> None:
    with pytest.raises(Invalid, match="are not those"):
        put(work, tar(("a", b"b")), bytes(range(32)))
    for config in (b"", b"{}", b"[]", b'{"docker_files": 5}', b'{"docker_files": "!"}'):
        with pytest.raises(Invalid, match="the host gave none"):
            registry.put_docker_files(config, bytes(range(32)), work)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def device(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.CHRTYPE
    return info


HOSTILE = [
    tar(("../outside", b"x")),
    tar(("a/../../outside", b"x")),
    tar(link("a", "/etc/passwd")),
    tar(link("a", "../../outside")),
    tar(link("a", "/etc/passwd", tarfile.LNKTYPE)),
    tar(link("a", ".."), ("a/outside", b"x")),
    tar(device("null")),
    tar(("/outside", b"x")),
    tar(("a", b"x"), ("a/b", b"y")),
    tar(("docker-compose.yaml", b"theirs")),
    tar(("./docker-compose.yaml", b"theirs")),
    b"no tar at all" * 100,
]


@pytest.mark.parametrize("raw", HOSTILE)
def test_files_that_leave_their_folder_or_replace_ours_end_the_boot(work: Path, raw: bytes) -> None:
    with pytest.raises(Invalid):
        put(work, raw)
    assert (work / "docker-compose.yaml").read_text() == "mine"
    assert not (work.parent / "outside").exists()


def test_too_many_or_too_large_files_end_the_boot(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "MAX_MEMBERS", 2)
    with pytest.raises(Invalid, match="more than 2"):
        put(work, tar(("a", b""), ("b", b""), ("c", b"")))
    monkeypatch.setattr(registry, "MAX_DOCKER_FILES", 10)
    with pytest.raises(Invalid, match="more than 10 bytes"):
        put(work, tar(("a", b"")))
