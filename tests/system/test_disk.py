"""The header of the data disk, as cryptsetup really writes it and as a host might change it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import Invalid
from core.proc import run
from guest import disk

KEY = bytes(range(32))


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A file in place of a disk: opening it would need the kernel, its header does not."""
    if shutil.which("cryptsetup") is None:
        pytest.skip("cryptsetup is not installed")
    made = tmp_path / "disk"
    made.touch()
    with made.open("r+b") as file:
        file.truncate(64 * 1024 * 1024)
    return made


def formatted(device: Path, *options: str, cipher: str = disk.CIPHER, bits: int = 512) -> Path:
    """The disk with a LUKS2 header; more options as cryptsetup takes them."""
    run(
        ["cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--cipher", cipher]
        + ["--key-size", str(bits), "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
        + ["--key-file", "-", *options, str(device)],
        input=KEY,
    )
    return device


def checked(device: Path) -> None:
    header = device.parent / "header"
    assert not disk._is_blank(device, header)
    disk._check_header(header)


def test_a_new_disk_and_one_that_was_never_finished_are_blank(device: Path) -> None:
    assert disk._is_blank(device, device.parent / "header")

    formatted(device, "--label", disk.LABEL_NEW)

    assert disk._is_blank(device, device.parent / "header")


def test_a_finished_disk_is_kept(device: Path) -> None:
    formatted(device, "--label", disk.LABEL_NEW)
    run(["cryptsetup", "config", device, "--label", disk.LABEL_READY])

    checked(device)

    assert (device.parent / "header").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("cipher", "bits"), [(disk.CIPHER, 256), ("aes-cbc-essiv:sha256", 256)])
def test_a_header_with_another_cipher_is_refused(device: Path, cipher: str, bits: int) -> None:
    formatted(device, "--label", disk.LABEL_READY, cipher=cipher, bits=bits)

    with pytest.raises(Invalid, match="header of the data disk was changed"):
        checked(device)


def null_cipher(found: dict[str, Any]) -> None:
    found["segments"]["0"]["encryption"] = "cipher_null-ecb"


def null_cipher_of_the_slot(found: dict[str, Any]) -> None:
    found["keyslots"]["0"]["area"]["encryption"] = "cipher_null-ecb"


def no_encryption(found: dict[str, Any]) -> None:
    found["segments"]["0"] = {"type": "linear", "offset": "16777216", "size": "dynamic"}


def half_re_encrypted(found: dict[str, Any]) -> None:
    found["config"]["requirements"] = {"mandatory": ["online-reencrypt-v2"]}


def another_segment(found: dict[str, Any]) -> None:
    found["segments"]["1"] = found["segments"]["0"]


def a_token(found: dict[str, Any]) -> None:
    found["tokens"]["0"] = {"type": "luks2-keyring", "keyslots": ["0"]}


@pytest.mark.parametrize(
    "change",
    [
        null_cipher,
        null_cipher_of_the_slot,
        no_encryption,
        half_re_encrypted,
        another_segment,
        a_token,
    ],
)
def test_a_header_that_a_host_changed_is_refused(
    device: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], None]
) -> None:
    formatted(device, "--label", disk.LABEL_READY)
    checked(device)
    found: Any = disk._metadata(device.parent / "header")
    change(found)
    monkeypatch.setattr(disk, "_metadata", lambda header: found)

    with pytest.raises(Invalid, match="header of the data disk was changed"):
        checked(device)


def test_a_header_with_a_second_way_in_is_refused(device: Path, tmp_path: Path) -> None:
    formatted(device, "--label", disk.LABEL_READY)
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "more").write_bytes(b"another key")
    run(
        ["cryptsetup", "luksAddKey", "--batch-mode", "--key-file", tmp_path / "key"]
        + ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
        + [str(device), str(tmp_path / "more")]
    )

    with pytest.raises(Invalid, match="was changed"):
        checked(device)


def test_a_disk_with_something_else_on_it_is_left_alone(device: Path) -> None:
    with device.open("r+b") as file:
        file.write(b"not ours")

    with pytest.raises(Invalid, match="something that is not this app's"):
        disk._is_blank(device, device.parent / "header")
    assert device.read_bytes().startswith(b"not ours")


def test_the_inside_must_be_what_this_key_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "DATA_MOUNT", tmp_path)
    with pytest.raises(Invalid, match="not the one that this instance"):
        disk._check_marker("aa" * 32)

    (tmp_path / disk.MARKER).write_text("bb" * 32)
    with pytest.raises(Invalid, match="not the one that this instance"):
        disk._check_marker("aa" * 32)

    (tmp_path / disk.MARKER).write_text("aa" * 32)
    disk._check_marker("aa" * 32)
