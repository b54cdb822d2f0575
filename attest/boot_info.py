"""Boot info: what a VM is to whoever authorises it, made from verified evidence only.

Source: kms.md section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

TDX = "dstack-tdx"
SEV_SNP = "dstack-amd-sev-snp"


@dataclass(frozen=True)
class BootInfo:
    """One VM as authorisation sees it; ids and hashes as raw bytes, empty where the VM has none."""

    tee_variant: str
    mr_aggregated: bytes
    os_image_hash: bytes
    mr_system: bytes
    app_id: bytes
    compose_hash: bytes
    instance_id: bytes
    device_id: bytes
    key_provider_info: bytes
    tcb_status: str
    advisory_ids: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The camelCase object that authorisation services are sent; bytes as lower-case hex."""
        return {
            "teeVariant": self.tee_variant,
            "mrAggregated": self.mr_aggregated.hex(),
            "osImageHash": self.os_image_hash.hex(),
            "mrSystem": self.mr_system.hex(),
            "appId": self.app_id.hex(),
            "composeHash": self.compose_hash.hex(),
            "instanceId": self.instance_id.hex(),
            "deviceId": self.device_id.hex(),
            "keyProviderInfo": self.key_provider_info.hex(),
            "tcbStatus": self.tcb_status,
            "advisoryIds": list(self.advisory_ids),
        }
