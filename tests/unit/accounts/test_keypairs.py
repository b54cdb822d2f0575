"""Public keys as users paste them, and the safe of private ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from accounts import keypairs
from accounts.keypairs import Safe
from core.errors import Invalid, Unavailable

ED = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0xQy0Zr9n7N1pT8m6hSLUhN4HcGZK2FgHqBDd3b1rN"


def test_a_key_is_known_by_its_parts() -> None:
    assert keypairs.parse(f" {ED} me and you \n") == (*ED.split(), "me and you")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "ssh-ed25519",
        "ssh-ed25519 !!!",
        "ssh-ed25519 AAAA",
        f"{ED}\n{ED}",
        f"no-pty {ED}",
        "ssh-dss AAAA",
    ],
)
def test_what_is_no_key_in_one_line_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="key"):
        keypairs.parse(text)


def test_a_fingerprint_is_that_of_ssh_keygen() -> None:
    # ssh-keygen -lf says so of this key.
    assert keypairs.fingerprint(ED) == "SHA256:F/b9QLKsIKVPNnrhLX2OaZdTP/zSeJJCkqHVxhQSuOY"


def test_a_safe_opens_what_it_sealed_for_that_row_alone(tmp_path: Path) -> None:
    safe = Safe.of(tmp_path)
    sealed = safe.seal("row", b"secret")

    assert b"secret" not in sealed
    assert Safe.of(tmp_path).open("row", sealed) == b"secret"
    with pytest.raises(Unavailable):
        safe.open("another", sealed)
    with pytest.raises(Unavailable):
        Safe(bytes(32)).open("row", sealed)
