from __future__ import annotations

import dataclasses

import pytest

from core.config import AttestationConfig, Config
from core.outbound import Reach
from secretvm.verification import reach


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("tcp:127.0.0.1:8080", Reach.ANY),
        ("tcp:[::1]:8080", Reach.ANY),
        ("tcp:localhost:8080", Reach.ANY),
        ("tcp:0.0.0.0:8080", Reach.PUBLIC),
        ("tcp:192.168.1.5:8080", Reach.PUBLIC),
        ("unix:/run/casemate.sock", Reach.PUBLIC),
    ],
)
def test_whom_strangers_may_reach_follows_from_who_can_call(address: str, expected: Reach) -> None:
    assert reach(Config(address=address)) is expected
    for said in ("off", "public", "any"):
        config = Config(address=address, attestation=AttestationConfig(outbound=said))
        assert reach(config) is Reach(said)
    assert dataclasses.replace(Config(), address=address).attestation.outbound == ""
