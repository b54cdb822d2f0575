"""Who may have keys: the question put to somebody else's service, or answered yes in development.

Each way answers the same three questions; no decision is ever kept.  Source: kms.md section 5.  The policy file
is in kms/policy.py, the contract in kms/chain.py.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from attest.boot_info import BootInfo
from core import http
from core.errors import CasemateError, Upstream
from kms.chain import Contract
from kms.decision import Authorizer, Decision, Policy
from kms.policy import PolicyFile
from kms.settings import AuthSettings

logger = logging.getLogger(__name__)

CALL_S = 10.0


class Dev:
    """Allows everything: for machines whose keys protect nothing."""

    is_dev = True

    def __init__(self, gateway_app_id: str) -> None:
        self._gateway_app_id = gateway_app_id

    def app(self, boot: BootInfo) -> Decision:
        """Yes."""
        return Decision(True, gateway_app_id=self._gateway_app_id)

    kms = app

    def policy(self) -> Policy:
        """The configured gateway."""
        return Policy(gateway_app_id=self._gateway_app_id)


class Webhook:
    """dstack's authorisation service: asked anew for every decision, and no answer is a no."""

    is_dev = False

    def __init__(self, url: str, version: str) -> None:
        self._url = url.rstrip("/")
        self._headers = {"User-Agent": f"dstack-kms/{version}", "Content-Type": "application/json"}

    def app(self, boot: BootInfo) -> Decision:
        """The service's word on an app."""
        return self._decide("bootAuth/app", boot)

    def kms(self, boot: BootInfo) -> Decision:
        """The service's word on a KMS."""
        return self._decide("bootAuth/kms", boot)

    def policy(self) -> Policy:
        """The service's own description."""
        said = self._ask("GET", "")
        chain_id = said.get("chainId", 0)
        return Policy(
            gateway_app_id=_text(said, "gatewayAppId"),
            kms_contract=_text(said, "kmsContractAddr"),
            chain_id=chain_id if isinstance(chain_id, int) else 0,
            app_implementation=_text(said, "appAuthImplementation")
            or _text(said, "appImplementation"),
            eth_rpc_url=_text(said, "ethRpcUrl"),
        )

    def _decide(self, path: str, boot: BootInfo) -> Decision:
        try:
            said = self._ask("POST", path, boot.to_json())
        except CasemateError as error:
            logger.warning("a boot was denied: %s", error.message)
            return Decision(False, error.message)
        if said.get("isAllowed") is not True:
            return Decision(False, _text(said, "reason") or "the authorisation service says no")
        return Decision(True, gateway_app_id=_text(said, "gatewayAppId"))

    def _ask(self, method: str, path: str, body: object = None) -> Mapping[str, object]:
        said = http.Peer(f"{self._url}/{path}", "the authorisation service").ask(
            method,
            None if body is None else json.dumps(body).encode(),
            within_s=CALL_S,
            headers=self._headers,
        )
        if not 200 <= said.status < 300:
            raise Upstream(f"the authorisation service answered {said.status}")
        return _object(said.body)


def _object(content: bytes) -> Mapping[str, object]:
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise Upstream("the authorisation service did not answer with a JSON object")
    return said


def _text(said: Mapping[str, object], name: str) -> str:
    value = said.get(name)
    return value if isinstance(value, str) else ""


def of(auth: AuthSettings, version: str) -> Authorizer:
    """The way of deciding that the configuration names."""
    if auth.type == "webhook":
        return Webhook(auth.webhook.url, version)
    if auth.type == "file":
        return PolicyFile(auth.file.path)
    if auth.type == "ethereum":
        return Contract(auth.ethereum.rpc_url, auth.ethereum.contract)
    logger.warning("every app and every KMS is given its keys: core.auth_api.type is dev")
    return Dev(auth.dev.gateway_app_id)
