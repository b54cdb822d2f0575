from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from core import certs
from core.certs import Issuer, Leaf
from core.errors import Upstream
from secretvm import certificate


def made(*names: str, **fields: int) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    own = x509.load_pem_x509_certificate(
        certs.authority(key, certs.name("own"), path_length=0).encode()
    )
    leaf = Leaf("own", alt_names=names, server_auth=True, **fields)  # type: ignore[arg-type]
    return x509.load_pem_x509_certificate(Issuer(key, own).issue(key.public_key(), leaf).encode())


@pytest.mark.parametrize(
    ("names", "host", "holds"),
    [
        (("vm.test",), "vm.test", True),
        (("vm.test",), "VM.test.", True),
        (("vm.test",), "a.vm.test", False),
        (("*.test",), "vm.test", True),
        (("*.test",), "a.vm.test", False),
        (("*.test",), "test", False),
        (("10.0.0.1",), "10.0.0.1", True),
        (("10.0.0.1",), "10.0.0.2", False),
        (("::1",), "0:0:0:0:0:0:0:1", True),
        ((), "own", False),
    ],
)
def test_a_certificate_stands_for_its_names(names: tuple[str, ...], host: str, holds: bool) -> None:
    assert certificate.stands_for(made(*names), host) is holds


def test_validity_is_judged_by_a_given_time() -> None:
    found = made("vm.test", not_before=1000, not_after=2000)

    assert [certificate.is_current(found, at) for at in (999, 1000, 2000, 2001)] == [
        False,
        True,
        True,
        False,
    ]
    assert certificate.described(found)["notAfter"] == "1970-01-01T00:33:20Z"


def test_what_is_no_certificate_is_the_peers_fault() -> None:
    with pytest.raises(Upstream):
        certificate.read(b"\x30\x00")
