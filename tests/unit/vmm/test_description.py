from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import Config
from image.registry import Image
from models.port import PortLease
from models.vm import VmEvent
from tests.common import rows
from vmm.description import describe, duration
from vmm.lifecycle import Observed, Wished
from vmm.records import now_ms
from vmm.schemas import VmInfo

HOUR = 3_600_000


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0s"),
        (-5000, "0s"),
        (999, "0s"),
        (1000, "1s"),
        (59_999, "59s"),
        (60_000, "1m"),
        (61_000, "1m 1s"),
        (2 * HOUR + 30 * 60_000, "2h 30m"),
        (HOUR + 1000, "1h 1s"),
        (24 * HOUR, "1day"),
        (26 * HOUR + 3 * 60_000 + 4000, "1day 2h 3m 4s"),
        (10 * 24 * HOUR + 1000, "10days 1s"),
    ],
)
def test_a_duration_has_its_largest_units_and_no_zeros(milliseconds: int, text: str) -> None:
    assert duration(milliseconds) == text


@given(st.integers(0, 10**13))
def test_a_duration_adds_up(milliseconds: int) -> None:
    sizes = {"day": 86_400, "days": 86_400, "h": 3600, "m": 60, "s": 1}
    total = 0
    for part in duration(milliseconds).split():
        number = part.rstrip("dayshm")
        total += int(number) * sizes[part[len(number) :]]

    assert total == milliseconds // 1000


def lease(vm_port: int, address: str, protocol: str = "tcp") -> PortLease:
    return PortLease(
        position=0, protocol=protocol, host_address=address, host_port=8000, vm_port=vm_port
    )


@pytest.mark.parametrize(
    ("ports", "url"),
    [
        ([], None),
        ([lease(80, "127.0.0.1")], None),
        ([lease(8090, "127.0.0.1", "udp")], None),
        ([lease(8090, "127.0.0.1")], "http://127.0.0.1:8000/"),
        ([lease(80, "127.0.0.1"), lease(8090, "192.0.2.1")], "http://192.0.2.1:8000/"),
        ([lease(8090, "0.0.0.0")], "http://127.0.0.1:8000/"),
        ([lease(8090, "::")], "http://127.0.0.1:8000/"),
        ([lease(8090, "2001:db8::1")], "http://[2001:db8::1]:8000/"),
    ],
)
def test_the_apps_url_is_the_mapping_to_the_agents_port(
    config: Config, ports: list[PortLease], url: str | None
) -> None:
    assert describe(rows.vm(ports=ports), config, brief=True)["app_url"] == url


@pytest.mark.parametrize(
    ("urls", "url"),
    [
        ([], "https://" + "cd" * 20 + "-8090.localhost:8082"),
        (["https://gw.example.com"], "https://" + "cd" * 20 + "-8090.gw.example.com"),
        (["https://gw.example.com:9200"], "https://" + "cd" * 20 + "-8090.gw.example.com:9200"),
    ],
)
def test_the_apps_url_is_at_its_gateway(config: Config, urls: list[str], url: str) -> None:
    vm = rows.vm(options={"gateway": True, "gateway_urls": urls}, ports=[lease(8090, "127.0.0.1")])

    assert describe(vm, config, brief=True)["app_url"] == "http://127.0.0.1:8000/"
    vm.instance_id = "cd" * 20
    assert describe(vm, config, brief=True)["app_url"] == url


def test_a_vm_that_never_ran_says_so(config: Config, image: Image) -> None:
    shown = describe(rows.vm(), config, brief=True)

    assert (shown["status"], shown["uptime"], shown["exited_at"]) == ("stopped", "never", "never")
    assert shown["configuration"] is None


def test_a_running_vm_tells_how_long(config: Config) -> None:
    vm = rows.vm(
        wished=Wished.RUNNING,
        observed=Observed.ALIVE,
        started_ms=now_ms() - 2 * HOUR - 30 * 60_000 - 100,
        stopped_ms=None,
    )

    shown = describe(vm, config, brief=True)

    assert (shown["status"], shown["uptime"], shown["exited_at"]) == ("running", "2h 30m", "never")


def test_an_ended_vm_tells_since_when(config: Config, image: Image) -> None:
    vm = rows.vm(
        wished=Wished.RUNNING, started_ms=now_ms() - 2 * HOUR, stopped_ms=now_ms() - HOUR - 100
    )
    (config.run_path / vm.id).mkdir(parents=True)

    shown = describe(vm, config, brief=True)

    assert (shown["status"], shown["uptime"], shown["exited_at"]) == ("exited", "never", "1h")


def test_a_vm_whose_files_are_gone_is_unknown(config: Config, image: Image) -> None:
    ran = rows.vm(stopped_ms=now_ms())
    imageless = rows.vm(image="gone-0.5.4")
    unreadable = rows.vm(options={"unreadable": "no JSON"})
    removed = rows.vm(image="gone-0.5.4", wished=Wished.REMOVED)

    shown = [
        describe(vm, config, brief=True)["status"] for vm in (ran, imageless, unreadable, removed)
    ]

    assert shown == ["unknown", "unknown", "unknown", "removing"]


def test_cards_are_shown_as_they_will_be(config: Config) -> None:
    node = replace(config.cvm.networking, bridge="br0", mac_prefix="52:54:00")
    changed = replace(config, cvm=replace(config.cvm, networking=node))
    cards = {"networks": [{"mode": "bridge"}, {"mode": ""}]}
    vm = rows.vm(id="vm-123", options=cards)

    first, second = describe(vm, changed, brief=True)["interfaces"]

    assert (first["backend"], first["bridge_name"]) == ("tap_bridge", "br0")
    assert (second["backend"], second["bridge_name"]) == ("slirp", None)
    assert first["mac"].startswith("52:54:00:")
    # A bridge that the configuration has no more: nothing can be said.
    assert describe(vm, config, brief=True)["interfaces"] == []


def test_details_have_every_field_of_the_message_and_the_whole_configuration(
    config: Config,
) -> None:
    vm = rows.vm(
        ports=[lease(80, "127.0.0.1")],
        events=[VmEvent(event="boot.progress", body="done", timestamp_ms=5)],
        encrypted_env=b"\x01",
        options={"kms_urls": ["https://kms"]},
        simulated_tee="dstack-tdx",
    )

    shown = describe(vm, config, brief=False)
    printed = VmInfo().dump(shown)

    assert set(shown) == set(VmInfo().fields)
    assert set(shown["configuration"]) == set(printed["configuration"])
    assert printed["configuration"]["encrypted_env"] == "01"
    assert printed["configuration"]["kms_urls"] == ["https://kms"]
    assert printed["configuration"]["ports"][0]["vm_port"] == 80
    assert printed["configuration"]["compose_file"] == rows.COMPOSE
    assert printed["events"] == [{"event": "boot.progress", "body": "done", "timestamp": 5}]
    assert printed["simulated_tee"] == "dstack-tdx"
