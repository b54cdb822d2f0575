from __future__ import annotations

from attest.boot_info import TDX, BootInfo


def test_boot_info_is_sent_as_camel_case_with_lower_case_hex() -> None:
    info = BootInfo(
        tee_variant=TDX,
        mr_aggregated=b"\xab",
        os_image_hash=b"\x01",
        mr_system=b"\x02",
        app_id=b"\x03",
        compose_hash=b"\x04",
        instance_id=b"",
        device_id=b"\x05",
        key_provider_info=b"{}",
        tcb_status="UpToDate",
        advisory_ids=("INTEL-SA-1",),
    )

    assert info.to_json() == {
        "teeVariant": "dstack-tdx",
        "mrAggregated": "ab",
        "osImageHash": "01",
        "mrSystem": "02",
        "appId": "03",
        "composeHash": "04",
        "instanceId": "",
        "deviceId": "05",
        "keyProviderInfo": "7b7d",
        "tcbStatus": "UpToDate",
        "advisoryIds": ["INTEL-SA-1"],
    }
