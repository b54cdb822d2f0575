"""What the guests of an app prove of themselves to this host's verifier, and what they do not, in words for people."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from apps.attestations import at_once, heard
from apps.cvms import Cvm
from apps.service import App, Apps
from attest import ratls
from attest.errors import Malformed, Mismatch, NotGenuine, VerificationError
from attest.verified import AppInfo, Verified, verify_evidence
from verify.service import Verifier

_VENDORS = {"intel": "an Intel", "amd": "an AMD"}


@dataclass(frozen=True)
class Words:
    """One VM: what its evidence proves, and what it leaves open."""

    cvm: Cvm
    proves: tuple[str, ...]
    lacks: tuple[str, ...]

    @property
    def is_proven(self) -> bool:
        """Whether nothing is left open."""
        return not self.lacks


@dataclass(frozen=True)
class _Said:
    text: str
    holds: bool


def of_app(apps: Apps, verifier: Verifier, app: App) -> list[Words]:
    """All VMs of an app, whose guests are asked at once."""
    cvms = apps.cvms([row.id for row in app.rows])
    return at_once(lambda cvm: _words(apps, verifier, cvm), cvms)


def _words(apps: Apps, verifier: Verifier, cvm: Cvm) -> Words:
    said = list(_sentences(apps, verifier, cvm))
    return Words(
        cvm,
        tuple(each.text for each in said if each.holds),
        tuple(each.text for each in said if not each.holds),
    )


def _sentences(apps: Apps, verifier: Verifier, cvm: Cvm) -> Iterator[_Said]:
    if cvm.told["simulated_tee"]:
        yield _Said(
            "Its TEE is simulated: whatever it shows proves nothing about this host.", False
        )
    told = heard(apps.vms, cvm)
    if not told.pem:
        yield _Said(f"It shows no evidence: {told.error or 'its certificate has none'}.", False)
        return
    try:
        verified = _verified(told.pem, verifier)
    except VerificationError as error:
        yield _Said(f"It shows no evidence: {error.message}.", False)
        return
    yield from _of_processor(verified)
    yield from _of_app(verified.app_info, cvm, is_proven=verified.is_valid)
    if verified.os_image_is_dev:
        yield _Said("That nobody logs in: its image is one for developers.", False)


def _verified(pem: str, verifier: Verifier) -> Verified:
    """The outcome for the evidence in a certificate; a VerificationError when it has none of its own key."""
    try:
        leaf = x509.load_pem_x509_certificates(pem.encode())[0]
        key = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm):
        raise Malformed("its certificate cannot be read") from None
    attestation = ratls.read(leaf).evidence()
    if attestation is None:
        raise NotGenuine("its certificate has none")
    if attestation.report_data != ratls.report_data_for_key(key):
        raise Mismatch("what its certificate carries is of another key")
    return verify_evidence(attestation, verifier.trust(int(time.time())))


def _of_processor(verified: Verified) -> Iterator[_Said]:
    vendor = _VENDORS.get(verified.root or "")
    if verified.quote_verified and vendor:
        yield _Said(f"It runs in a VM that {vendor} processor keeps from its host.", True)
        yield _Said("The key of its certificate was made in that VM.", True)
    elif verified.quote_verified:
        yield _Said(
            "Its evidence leads to a root of this host's operator, not to a vendor's.", False
        )
    if verified.reason:
        yield _Said(f"This host's verifier does not accept its evidence: {verified.reason}.", False)
    if verified.tcb_status not in ("", "UpToDate"):
        yield _Said(f"The firmware under it is {verified.tcb_status}, by its vendor's word.", False)
    if verified.os_image_hash_verified:
        version = verified.os_image_version or "of an unknown version"
        yield _Said(f"It booted the image that it names, {version}.", vendor is not None)


def _of_app(info: AppInfo | None, cvm: Cvm, *, is_proven: bool) -> Iterator[_Said]:
    if info is None:
        yield _Said("Which app it booted.", False)
        return
    if info.app_id.hex() != cvm.row.app_id:
        yield _Said(f"It booted as another app, {info.app_id.hex()}.", False)
    if info.compose_hash.hex() == cvm.compose_hash:
        yield _Said("It booted the app-compose text of its newest revision.", is_proven)
    else:
        yield _Said(
            f"It booted another app-compose text, {info.compose_hash.hex()}; the newest revision comes with a restart.",
            False,
        )
