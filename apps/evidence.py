"""What the guests of an app prove of themselves to this host's verifier, and what they do not, in words for people."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from apps.attestations import Said, at_once, heard
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
class _Sentence:
    text: str
    holds: bool


def of_app(apps: Apps, verifier: Verifier, app: App) -> list[Words]:
    """All VMs of an app, whose guests are asked at once."""
    cvms, now = apps.cvms([row.id for row in app.rows]), int(time.time())
    return at_once(lambda cvm: words(cvm, heard(apps.vms, cvm), verifier, now), cvms)


def words(cvm: Cvm, told: Said, verifier: Verifier, now: int) -> Words:
    """What a VM's guest told, in words, at the Unix time `now`."""
    said = list(_sentences(cvm, told, verifier, now))
    return Words(
        cvm,
        tuple(each.text for each in said if each.holds),
        tuple(each.text for each in said if not each.holds),
    )


def _sentences(cvm: Cvm, told: Said, verifier: Verifier, now: int) -> Iterator[_Sentence]:
    if cvm.told["simulated_tee"]:
        yield _Sentence(
            "Its TEE is simulated: whatever it shows proves nothing about this host.", False
        )
    if not told.pem:
        yield _Sentence(f"It shows no evidence: {told.error or 'it has no certificate'}.", False)
        return
    try:
        verified = _verified(told.pem, verifier, now)
    except VerificationError as error:
        yield _Sentence(f"It shows no evidence: {error.message}.", False)
        return
    yield from _of_processor(verified)
    yield from _of_app(verified.app_info, cvm, is_proven=_is_vendors(verified))
    if verified.os_image_is_dev:
        yield _Sentence("That nobody logs in: its image is one for developers.", False)


def _verified(pem: str, verifier: Verifier, now: int) -> Verified:
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
    return verify_evidence(attestation, verifier.trust(now))


def _is_vendors(verified: Verified) -> bool:
    return verified.is_valid and verified.root in _VENDORS


def _of_processor(verified: Verified) -> Iterator[_Sentence]:
    vendor = _VENDORS.get(verified.root or "")
    if verified.quote_verified and vendor:
        yield _Sentence(f"It runs in a VM that {vendor} processor keeps from its host.", True)
        yield _Sentence("The key of its certificate was made in that VM.", True)
    elif verified.quote_verified:
        yield _Sentence(
            "Its evidence leads to a root of this host's operator, not to a vendor's.", False
        )
    if verified.reason:
        yield _Sentence(
            f"This host's verifier does not accept its evidence: {verified.reason}.", False
        )
    if verified.tcb_status not in ("", "UpToDate"):
        yield _Sentence(
            f"The firmware under it is {verified.tcb_status}, by its vendor's word.", False
        )
    if verified.os_image_hash_verified:
        version = verified.os_image_version or "of an unknown version"
        yield _Sentence(f"It booted the image that it names, {version}.", vendor is not None)


def _of_app(info: AppInfo | None, cvm: Cvm, *, is_proven: bool) -> Iterator[_Sentence]:
    if info is None:
        yield _Sentence("Which app it booted.", False)
        return
    if info.app_id.hex() != cvm.row.app_id:
        yield _Sentence(f"It booted as another app, {info.app_id.hex()}.", False)
    if info.compose_hash.hex() == cvm.compose_hash:
        yield _Sentence("It booted the app-compose text of its newest revision.", is_proven)
    else:
        yield _Sentence(
            f"It booted another app-compose text, {info.compose_hash.hex()}; the newest revision comes with a restart.",
            False,
        )
