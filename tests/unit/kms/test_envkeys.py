"""The public environment key and its signatures."""

from __future__ import annotations

from typing import Any

from core import k256
from kms import derive, envkeys, rootkeys
from tests.unit.kms.conftest import APP_ID


def test_the_published_signature_is_over_the_older_form(known_answers: dict[str, Any]) -> None:
    given = known_answers["legacy_env_pubkey_signature_upstream"]
    app_id, public = (bytes.fromhex(given[name]) for name in ("app_id", "public_key"))

    signer = k256.recover(bytes.fromhex(given["signature"]), envkeys.signed_text(app_id, public))

    assert signer.hex() == given["signer"]


def test_both_signatures_are_the_root_keys_and_the_newer_binds_the_time() -> None:
    root = rootkeys.create()

    made = envkeys.env_key(root, APP_ID, 1_700_000_000)

    assert made.public_key == derive.env_public_key(root, APP_ID)
    older = b"dstack-env-encrypt-pubkey:" + APP_ID + made.public_key
    assert k256.recover(made.signature, older) == root.k256_public
    newer = (
        b"dstack-env-encrypt-pubkey:"
        + APP_ID
        + (1_700_000_000).to_bytes(8, "big")
        + made.public_key
    )
    assert k256.recover(made.signature_v1, newer) == root.k256_public
    assert made.timestamp == 1_700_000_000
