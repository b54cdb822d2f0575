"""The verifier: evidence that somebody hands in, against the roots and sources of this host's configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from attest import collateral, envelope, eventlog, quote, snp
from attest.collateral import Source
from attest.errors import Malformed, VerificationError
from attest.evidence import Attestation, TdxEvidence
from attest.os_image import KnownImage
from attest.root import Roots, read_roots
from attest.verified import Trust, Verified, verify_evidence
from core.config import Config
from core.errors import Unavailable
from core.files import read_capped
from image import known
from verify.schemas import Request

NONE = Path()
MAX_ROOTS = 64 * 1024


class Verifier:
    """Answers requests by one configuration; `root_ca` is read anew each time, like collateral in a file.

    `source` gives collateral, `revocations` AMD's lists of revoked keys.
    """

    def __init__(
        self,
        root_ca: Path,
        source: Source,
        image: Callable[[bytes], KnownImage | None] = lambda os_image_hash: None,
        revocations: Source = collateral.nowhere,
    ) -> None:
        self._root_ca = root_ca
        self.source = source
        self.revocations = revocations
        self._roots_read: tuple[tuple[int, int, int] | None, Roots] = (None, Roots())
        self._image = image

    @classmethod
    def of(cls, config: Config) -> Verifier:
        """The verifier of a host's service."""
        given = config.attestation
        if given.collateral != NONE:
            source = collateral.file(given.collateral)
        else:
            folder = config.data_dir / "collateral"
            source = collateral.service(given.pccs_url, given.kds_url, folder)
        revocations = collateral.revocations(given.kds_url)
        return cls(given.root_ca, source, known.finder(config.image.path), revocations)

    def verify(self, request: Request, now: int) -> Verified:
        """The outcome at the Unix time `now`.

        Raises Malformed when the evidence itself cannot be read, Unavailable when our own root cannot.
        """
        trust = self.trust(now)
        if request.collateral:
            trust = replace(trust, collateral=collateral.given(request.collateral))
        try:
            attestation = _attestation(request)
        except Malformed:
            raise
        except VerificationError as error:
            # Readable, but at odds with itself: an outcome like any other.
            return Verified(tee_variant="", report_data=b"", reason=error.message)
        return verify_evidence(attestation, trust)

    def trust(self, now: int) -> Trust:
        """What this host's verifier goes by at the Unix time `now`; Unavailable as for its roots."""
        roots = self.roots()
        return Trust(
            now=now,
            collateral=self.source,
            tdx_root=roots.tdx,
            snp_root=roots.snp,
            image=self._image,
        )

    def roots(self) -> Roots:
        """The configured roots; Unavailable when their file cannot be read."""
        if self._root_ca == NONE:
            return Roots()
        try:
            status = self._root_ca.stat()
            stamp = status.st_ino, status.st_mtime_ns, status.st_size
            known, roots = self._roots_read
            if stamp != known:
                roots = read_roots(read_capped(self._root_ca.resolve(), MAX_ROOTS))
                self._roots_read = stamp, roots
            return roots
        except (OSError, VerificationError) as error:
            # Without its path: whoever may send evidence reads this.
            why = getattr(error, "strerror", error)
            raise Unavailable(f"attestation.root_ca cannot be used: {why}") from None


def _attestation(request: Request) -> Attestation:
    if request.attestation:
        attestation = envelope.decode(request.attestation)
        _check_readable(attestation)
        return attestation
    report_data = quote.parse(request.quote).report.report_data
    events = eventlog.from_json(request.event_log) if request.event_log else ()
    runtime = tuple(event for event in events if event.is_runtime)
    return Attestation(TdxEvidence(request.quote, events), runtime, report_data, request.vm_config)


def _check_readable(attestation: Attestation) -> None:
    if isinstance(attestation.platform, TdxEvidence):
        quote.parse(attestation.platform.quote)
    else:
        snp.parse(attestation.platform.report)
