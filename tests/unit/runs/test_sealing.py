"""Secrets of specs as they stand in the database."""

from __future__ import annotations

import pytest

from accounts.keypairs import Safe
from core.errors import Unavailable
from runs.sealing import seal, unseal

SAFE = Safe(bytes(32))
JOB = {"commands": ["true"], "env": {"A": "secret"}, "registry_auth": None, "probes": []}


@pytest.mark.parametrize("spec", [JOB, {"run_name": "one", "configuration": JOB}])
def test_what_was_sealed_is_found_again(spec: dict[str, object]) -> None:
    sealed = seal(spec, SAFE, "run")

    assert "secret" not in str(sealed)
    assert "true" in str(sealed)
    assert unseal(sealed, SAFE, "run") == spec


def test_a_secret_cannot_be_moved_to_another_run_or_field() -> None:
    sealed = seal(JOB, SAFE, "run")

    with pytest.raises(Unavailable):
        unseal(sealed, SAFE, "another")
    with pytest.raises(Unavailable):
        unseal(sealed | {"probes": sealed["env"]}, SAFE, "run")
