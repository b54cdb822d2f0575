from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attest.errors import Malformed
from attest.root import Roots, custom_name, read_roots
from tests.common.evidence import platform, processor

TDX, SNP = platform().root_ca_pem.encode(), processor().root_ca_pem.encode()


def test_a_root_is_for_the_platform_whose_keys_it_has() -> None:
    both = read_roots(TDX + SNP)

    assert both == read_roots(SNP + TDX)
    assert both.tdx == platform().root_ca_der
    assert both.snp == processor().ark.public_bytes(Encoding.DER)
    assert read_roots(TDX) == Roots(both.tdx, None)
    assert read_roots(SNP) == Roots(None, both.snp)


def test_simulated_roots_are_called_so() -> None:
    assert custom_name(processor().ark) == "simulated"


@pytest.mark.parametrize("pem", [b"", b"text", TDX.replace(b"MII", b"XII", 1)])
def test_what_is_no_certificate_is_refused(pem: bytes) -> None:
    with pytest.raises(Malformed, match="not a certificate"):
        read_roots(pem)


def test_two_roots_for_one_platform_are_refused() -> None:
    with pytest.raises(Malformed, match="must be one with"):
        read_roots(TDX + TDX)
    with pytest.raises(Malformed, match="must be one with"):
        read_roots(SNP + SNP)
