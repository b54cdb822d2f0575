"""The contracts of KMSes: on which devices and with which OS images they let guests have keys (apps.md sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from apps.allowlist import asking, flag
from apps.catalog import Catalog, Kms
from apps.chains import Chains
from apps.refusals import KMS_NOT_FOUND, coded
from core.errors import CasemateError, NotFound
from image.registry import Image

Json = dict[str, Any]


@dataclass(frozen=True)
class Contracts:
    """The KMS contracts that the configuration names, and what this host would ask of them."""

    catalog: Catalog
    chains: Chains

    def on(self, name: str) -> Json:
        """Those of one chain, by its name, number or kind of KMS; NotFound when there are none.

        What could not be read is None and never a "no"; the contract's `error` says why.
        """
        found = [each for each in self.catalog.kms if name.lower() in self._names(each)]
        if not found:
            known = ", ".join(sorted({self._chain_name(e) for e in self.catalog.kms if e.chain_id}))
            raise coded(
                NotFound(f"kms: this host has no KMS on chain {name[:64]}"),
                KMS_NOT_FOUND,
                suggestion=f"its chains are {known or 'none'}",
            )
        chain_id = found[0].chain_id
        of_chain = {e.contract_address: e for e in found if e.chain_id == chain_id}
        return {
            "chain_name": self._chain_name(found[0]),
            "chain_id": chain_id,
            "contracts": [self._contract(each) for each in of_chain.values()],
        }

    def _names(self, kms: Kms) -> set[str]:
        if kms.chain_id is None:
            return set()
        return {str(kms.chain_id), kms.type, self._chain_name(kms).lower()}

    def _chain_name(self, kms: Kms) -> str:
        chain = self.catalog.chain(kms.chain_id)
        return (chain.name if chain else "") or kms.type

    def _contract(self, kms: Kms) -> Json:
        device, images = self.catalog.device_id, self.catalog.images()
        (of_device, *of_images), error = self._asked(kms, device, images)
        return {
            "contract_address": kms.contract_address or "",
            "chain_id": kms.chain_id,
            "chain_name": self._chain_name(kms),
            "devices": [
                {
                    "device_id": device,
                    "node_name": self.catalog.node_name,
                    "on_chain_allowed": of_device,
                }
            ],
            "os_images": [
                {
                    "name": image.name,
                    "version": image.version,
                    "os_image_hash": image.digest or None,
                    "on_chain_allowed": allowed if image.digest else None,
                }
                for image, allowed in zip(images, of_images, strict=True)
            ],
            "error": error,
        }

    def _asked(
        self, kms: Kms, device: str, images: Sequence[Image]
    ) -> tuple[list[bool | None], str | None]:
        """What the contract says of the device and of each image, and why something could not be read."""
        unread: list[bool | None] = [None] * (1 + len(images))
        if not kms.contract_address:
            return unread, f"the entry {kms.slug} has no contract_address"
        contract = bytes.fromhex(kms.contract_address[2:])
        calls = [asking(contract, "kmsAllowedDeviceIds", device)]
        calls += [asking(contract, "allowedOsImages", each.digest) for each in images]
        try:
            told = self.chains.reader(kms.chain_id or 0).calls(calls)
        except CasemateError as error:
            return unread, error.message
        read, why = unread, None
        for place, answer in enumerate(told):
            try:
                read[place] = flag(answer)
            except CasemateError as error:
                why = why or error.message
        return read, why
