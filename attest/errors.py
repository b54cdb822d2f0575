"""The one error family of the attestation library; each message is a sentence for a person."""

from __future__ import annotations

from core.errors import Invalid


class VerificationError(Invalid):
    """The evidence cannot be accepted; the subclass says at which question it failed."""


class Malformed(VerificationError):
    """The bytes are not what they claim to be."""


class NotGenuine(VerificationError):
    """A signature, certificate or revocation list does not lead to the trusted root at that time."""


class BadSignature(NotGenuine):
    """A signature is not of the key that it should be of."""


class Revoked(NotGenuine):
    """A key or a TCB level that signed was revoked."""


class Stale(NotGenuine):
    """Collateral is not valid at that time, so nothing can be said with it."""


class Mismatch(VerificationError):
    """Two parts of the evidence, or the evidence and what was expected, contradict each other."""


class Refused(VerificationError):
    """The evidence shows a state that is never acceptable, genuine or not."""
