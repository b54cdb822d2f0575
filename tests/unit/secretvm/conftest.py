"""Hosts whose TLS key and quotes are checked: what trusts the simulated roots, and a server whose pages a test gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from attest import collateral
from secretvm.quotes import Quotes
from tests.common import evidence
from tests.common.evidence import TdxVm, platform, processor
from tests.common.tls_server import TlsServer
from verify.service import Verifier


@pytest.fixture
def quotes(tmp_path: Path) -> Quotes:
    """Trusts the simulated roots and has their collateral."""
    (tmp_path / "root.pem").write_text(platform().root_ca_pem + processor().root_ca_pem)
    return Quotes(Verifier(tmp_path / "root.pem", collateral.given(evidence.collateral())))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TlsServer]:
    with TlsServer(tmp_path, {}) as running:
        yield running


def quote_over(report_data: bytes) -> str:
    vm = TdxVm(report_data=report_data.ljust(64, b"\0"))
    quote: bytes = vm.attestation().platform.quote  # type: ignore[union-attr] # a TDX VM's
    return quote.hex()
