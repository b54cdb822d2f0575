"""The one error family of the attestation library; each message is a sentence for a person."""

from __future__ import annotations

from core.errors import Invalid


class VerificationError(Invalid):
    """The evidence cannot be accepted; the subclass says at which question it failed."""


class Malformed(VerificationError):
    """The bytes are not what they claim to be."""


class NotGenuine(VerificationError):
    """A signature, certificate or revocation list does not lead to the trusted root at that time."""


class Mismatch(VerificationError):
    """Two parts of the evidence, or the evidence and what was expected, contradict each other."""


class Refused(VerificationError):
    """The evidence shows a state that is never acceptable, genuine or not."""
