"""Telling the KMS of this host what its users deploy (`[kms] register_apps`).

It lets the policy file of that KMS know the app; whether a guest is that app, its evidence has to show.
"""

from __future__ import annotations

import logging

from attest import compose
from core import policy_file
from core.config import KmsConfig
from core.errors import Conflict, Invalid, Unavailable

logger = logging.getLogger(__name__)


def register(kms: KmsConfig, app_id: str, compose_file: str) -> None:
    """Allows an app that wants keys of a KMS with this compose text; Unavailable when it cannot be noted."""
    raw = compose_file.encode()
    if not kms.register_apps or compose.AppCompose.parse(raw).key_provider != "kms":
        return
    compose_hash = compose.compose_hash(raw).hex()
    try:
        policy_file.change(
            kms.policy_file,
            lambda document: policy_file.allow_app(document, app_id, compose_hash),
        )
    except (Conflict, Invalid, OSError) as error:
        logger.error("the app could not be added to the KMS's policy file: %s", error)
        raise Unavailable(
            "the policy file of this host's KMS cannot be changed, so this app would get no keys; "
            "the service's log has the reason"
        ) from None
