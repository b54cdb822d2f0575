from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attest.compose import AppCompose, document_of
from core.errors import Invalid
from rest.docker_compose import published
from secretvm import document
from secretvm.document import Measured

COMPOSE = "services: {web: {image: x}}\n"


def with_ports(ports: str) -> str:
    return f"services:\n  web:\n    image: x\n    ports: {ports}\n"


def test_the_guests_own_pages_come_first_and_twenty_ports_are_the_most() -> None:
    twenty = with_ports(str([f"{8000 + n}:80" for n in range(20)]))

    assert document.guest_ports(twenty) == (29343, *range(8000, 8020))
    with pytest.raises(Invalid, match="more than 20"):
        document.guest_ports(with_ports("['8000-8020:80-100']"))


def test_a_text_that_means_every_port_many_times_costs_nothing() -> None:
    text = with_ports(str(["1-65535:1-65535"] * 5000))
    begun = time.process_time()

    with pytest.raises(Invalid):
        document.guest_ports(text)

    assert time.process_time() - begun < 5


def alias_bomb() -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 25)]
    return "\n".join([*lines, "services: {web: {ports: *a24}}"])


def merge_bomb() -> str:
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 25)]
    return "\n".join([*lines, "services: {web: {<<: *a24}}"])


@pytest.mark.parametrize("bomb", [alias_bomb(), merge_bomb()], ids=["alias", "merge"])
def test_a_bomb_of_aliases_stays_small(bomb: str) -> None:
    begun = time.process_time()

    document.read_compose(bomb.encode())
    document.guest_ports(bomb)

    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "services"),
        (b"- a", "services"),
        (b"services:", "services"),
        (b"services: {}", "services"),
        (b"services: [a]", "services"),
        (b"services: [", "YAML"),
        (b"\xff", "UTF-8"),
        (b"services: {a: {}}\n# \0", "NUL"),
        (b"services: {a: {}}\n# " + b"x" * 1024**2, "bytes"),
        (b"[" * 5000, "nests"),
        (b"services: {a: {}}\nx:\n" + b" - y\n" * 60_000, "parts"),
    ],
)
def test_what_is_no_compose_file_is_refused_with_the_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(Invalid, match="dockercompose") as refused:
        document.read_compose(raw)

    assert reason in refused.value.message


@given(st.text())
def test_no_text_is_a_fault(text: str) -> None:
    try:
        document.read_compose(text.encode(errors="surrogatepass"))
    except Invalid:
        assert published(text) == ()


def test_the_compose_text_is_in_the_document_as_it_was_sent() -> None:
    text = "# ünïcode \t\r\nservices: {web: {image: x}}  \n\n"
    made = document.app_compose("my vm", text, Measured(), ())

    assert AppCompose.parse(made.encode()).docker_compose_file == text
    assert document.docker_compose(document_of(made)) == text


def test_the_document_is_canonical_and_says_what_the_guest_reads() -> None:
    measured = Measured(environment="dev", private=True, dev_token_sha256="ab" * 32)
    made = document.app_compose("my vm", COMPOSE, measured, ())

    told = json.loads(made)
    assert made == json.dumps(
        told, sort_keys=True, indent=4, separators=(",", ":"), ensure_ascii=False
    )
    assert told["secretvm"] == {
        "environment": "dev",
        "private": True,
        "persistent": False,
        "upgradeable": False,
        "dev_token_sha256": "ab" * 32,
        "docker_files_sha256": "",
    }
    assert (told["public_logs"], told["public_sysinfo"], told["gateway_enabled"]) == (False,) * 3
    assert document.measured_in(told) == measured
    assert document.measured_in({}) is None


@pytest.mark.parametrize(
    ("measured", "names", "provider"),
    [
        (Measured(), (), "none"),
        (Measured(persistent=True), (), "kms"),
        (Measured(upgradeable=True), (), "kms"),
        (Measured(), ("A",), "kms"),
    ],
)
def test_keys_come_from_the_kms_where_something_asks_for_them(
    measured: Measured, names: tuple[str, ...], provider: str
) -> None:
    told = json.loads(document.app_compose("my vm", COMPOSE, measured, names))

    assert (told["key_provider"], told["allowed_envs"]) == (provider, list(names))


def tar(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "/etc/passwd"
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_a_whole_tar_is_named_by_its_hash() -> None:
    raw = tar(("Dockerfile", b"FROM x\n"), ("src/app.py", bytes(range(256)) * 40))

    assert document.check_docker_files(raw) == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no tar",
        tar(("a", b"x" * 2000))[:1500],
        tar(("a", b"\xff" * 700), ("b", b"x")).decode(errors="replace").encode(),
        tar(("../a", b"x")),
        tar(("/a", b"x")),
        tar(("a/../../b", b"x")),
        tar(("a", b""), kind=tarfile.SYMTYPE),
        tar(("a", b""), kind=tarfile.CHRTYPE),
        tar(("a", b"x")) + b"more",
    ],
    ids=["empty", "text", "cut", "as text", "up", "absolute", "inside", "link", "device", "more"],
)
def test_a_tar_that_is_damaged_or_leaves_its_folder_is_refused(raw: bytes) -> None:
    with pytest.raises(Invalid, match="dockerfiles"):
        document.check_docker_files(raw)
