"""Authorisation by a DstackKms contract, asked anew for every decision.

Source: kms.md section 5 ("On chain").
"""

from __future__ import annotations

import logging

from attest.boot_info import BootInfo
from core import evm
from core.errors import Upstream, UpstreamTimeout
from core.evm import Call, Chain
from kms.decision import Decision, Policy

logger = logging.getLogger(__name__)

_BOOT_INFO = "(address,bytes32,address,bytes32,bytes32,bytes32,bytes32,string,string[])"
IS_APP_ALLOWED = f"isAppAllowed({_BOOT_INFO})"
IS_KMS_ALLOWED = f"isKmsAllowed({_BOOT_INFO})"
_ADDRESS, _HASH = 20, 32
# What the members of the struct are wide that have a width; they come first.
_WIDTHS = (_ADDRESS, _HASH, _ADDRESS, _HASH, _HASH, _HASH, _HASH)
# Of the struct's members that have one, in its order.
_WIDTHS = (_ADDRESS, _HASH, _ADDRESS, _HASH, _HASH, _HASH, _HASH)


class Contract:
    """A contract at an address of a chain; a chain that cannot be asked allows nothing."""

    is_dev = False

    def __init__(self, rpc_url: str, address: str) -> None:
        self._chain = Chain(rpc_url)
        self._address = bytes.fromhex(address.removeprefix("0x"))

    def app(self, boot: BootInfo) -> Decision:
        """The contract's word on an app."""
        return self._decide(IS_APP_ALLOWED, boot)

    def kms(self, boot: BootInfo) -> Decision:
        """The contract's word on a KMS."""
        return self._decide(IS_KMS_ALLOWED, boot)

    def policy(self) -> Policy:
        """The chain, the contract, and what it says of itself."""
        (gateway,) = evm.decode(["string"], self._read("gatewayAppId()"))
        (implementation,) = evm.decode(["address"], self._read("appImplementation()"))
        return Policy(
            gateway_app_id=gateway,
            kms_contract="0x" + self._address.hex(),
            chain_id=self._chain.chain_id(),
            app_implementation=implementation,
            eth_rpc_url=self._chain.url,
        )

    def _decide(self, signature: str, boot: BootInfo) -> Decision:
        # The raw chip id of SEV-SNP has 64 bytes, and an instance id what the guest measured: no contract can list them.
        if any(len(each) > width for each, width in zip(_sized(boot), _WIDTHS, strict=True)):
            return Decision(False, "the boot info does not fit the contract")
        data = evm.encode(signature, boot_tuple(boot))
        try:
            answer = self._chain.call(Call(self._address, data))
            allowed, reason = evm.decode(["bool", "string"], answer)
            if not allowed:
                return Decision(False, reason or "the contract says no")
            (gateway,) = evm.decode(["string"], self._read("gatewayAppId()"))
        except (Upstream, UpstreamTimeout) as error:
            logger.warning("a boot was denied: %s", error.message)
            return Decision(False, error.message)
        return Decision(True, gateway_app_id=gateway)

    def _read(self, signature: str) -> bytes:
        return self._chain.call(Call(self._address, evm.selector(signature)))


def boot_tuple(boot: BootInfo) -> tuple[object, ...]:
    """A boot info as the contract's struct; short values have zeros on their left."""
    sized = zip(_sized(boot), _WIDTHS, strict=True)
    padded = (value.rjust(width, b"\0") for value, width in sized)
    return (*padded, boot.tcb_status, list(boot.advisory_ids))


def _sized(boot: BootInfo) -> tuple[bytes, ...]:
    return (
        boot.app_id,
        boot.compose_hash,
        boot.instance_id,
        boot.device_id,
        boot.mr_aggregated,
        boot.mr_system,
        boot.os_image_hash,
    )
