from __future__ import annotations

from typing import Any

import pytest

from core import prpc
from core.errors import Conflict, Invalid, Unavailable
from tests.common import rows
from vmm.console_compose import Form
from vmm.console_forms import change, configuration, empty, filled, reasons
from vmm.schemas import UpdateVmRequest, VmConfiguration

PORT = {"protocol": "tcp", "host_address": "127.0.0.1", "host_port": 8080, "vm_port": 80}


def info(**fields: Any) -> dict[str, Any]:
    """GetInfo of a VM, as a caller reads it."""
    wanted = prpc.load(VmConfiguration, rows.request(**fields))
    return {"id": "an-id", "app_id": "ab" * 20, "configuration": VmConfiguration().dump(wanted)}


WHOLE = {
    "ports": [PORT, {**PORT, "protocol": "udp", "host_port": 8081}],
    "networks": [{"mode": "bridge", "bridge_name": "br0"}, {"mode": "user", "bridge_name": None}],
    "gpus": {"attach_mode": "listed", "gpus": [{"slot": "0000:3b:00.0"}]},
    "kms_urls": ["https://a", "https://b"],
    "gateway_urls": ["https://c"],
    "user_config": "kept",
    "hugepages": True,
    "pin_numa": True,
    "no_tee": True,
}


@pytest.mark.parametrize("fields", [{}, WHOLE, {"simulated_tee": "dstack-tdx", "memory": 2048}])
def test_a_form_that_nobody_changed_asks_for_no_change(fields: dict[str, Any]) -> None:
    has = info(**fields)

    assert change(filled(has), has) == {"id": "an-id"}


@pytest.mark.parametrize("fields", [{}, WHOLE])
def test_a_clone_asks_for_what_the_first_one_is(fields: dict[str, Any]) -> None:
    has = info(**fields)
    form = filled(has)
    form.pop("app_id")

    asked = prpc.load(VmConfiguration, configuration(form, has["configuration"]["compose_file"]))

    again = VmConfiguration().dump(asked)
    empty_gpus = {"attach_mode": "", "gpus": []}
    assert {**again, "gpus": again["gpus"] if fields else None} == has["configuration"]
    assert fields or again["gpus"] == empty_gpus


@pytest.mark.parametrize("platform", ["dstack-tdx", "dstack-amd-sev-snp"])
def test_a_clone_simulates_the_same_platform(platform: str) -> None:
    has = info(simulated_tee=platform)

    asked = configuration(filled(has), has["configuration"]["compose_file"])

    assert asked["simulated_tee"] == platform


def test_a_change_names_only_what_differs() -> None:
    has = info(**WHOLE)
    form = filled(has)
    form.setlist("port_host", ["9090", "8081"])
    form["user_config"] = "new\r\nlines"
    form["vcpu"] = "4"
    form["kms_urls"] = ""

    asked = change(form, has)

    assert asked.keys() == {
        *("id", "update_ports", "ports", "user_config"),
        *("vcpu", "update_kms_urls", "kms_urls"),
    }
    assert asked["ports"][0] == {**PORT, "host_port": 9090}
    assert asked["user_config"] == "new\nlines"
    assert prpc.load(UpdateVmRequest, asked).vcpu == 4


def test_fields_that_were_locked_are_not_changed() -> None:
    has = info()
    form = filled(has)
    for name in ("vcpu", "memory", "memory_unit", "disk_size", "image"):
        form.pop(name)

    assert change(form, has) == {"id": "an-id"}


def test_secrets_are_sent_only_to_be_replaced() -> None:
    has = info(encrypted_env="ab" * 60)
    form = filled(has)

    form["encrypted_env"] = "cd" * 60
    assert change(form, has) == {"id": "an-id"}
    form["reset_secrets"] = "on"
    assert change(form, has) == {"id": "an-id", "encrypted_env": "cd" * 60}


def test_a_document_written_by_hand_must_let_in_what_is_sealed() -> None:
    raw = {"compose_mode": "raw", "compose_file": '{"allowed_envs": ["A"]}', "allowed_envs": "A B"}

    assert configuration(Form(raw))["compose_file"] == raw["compose_file"]
    with pytest.raises(Invalid, match="allowed_envs must name B"):
        configuration(Form({**raw, "encrypted_env": "ab"}))
    named = {"compose_file": '{"allowed_envs": ["B", "A"]}', "encrypted_env": "ab"}
    assert configuration(Form({**raw, **named}))["encrypted_env"] == "ab"


def test_empty_rows_are_no_ports_and_no_cards() -> None:
    form = empty("tiny")
    for protocol, host in (("tcp", ""), ("udp", "53"), ("tcp", " ")):
        form.update({"port_protocol": protocol, "port_address": "", "port_host": host})
        form.update({"port_vm": host, "network_mode": "", "network_bridge": "br0"})

    asked = configuration(form)

    assert asked["networks"] == []
    assert asked["ports"] == [
        {"protocol": "udp", "host_port": 53, "vm_port": 53, "host_address": ""}
    ]


@pytest.mark.parametrize(
    ("typed", "unit", "asked"),
    [
        *(("1024", "MB", 1024), ("1.5", "GB", 1536), (" 2 ", "GB", 2048), ("-1", "MB", -1)),
        *(("much", "MB", "much"), ("much", "GB", "much"), ("", "GB", ""), ("1e9", "MB", "1e9")),
    ],
)
def test_memory_goes_on_in_mb_or_as_it_was_typed(typed: str, unit: str, asked: object) -> None:
    assert configuration(Form({"memory": typed, "memory_unit": unit}))["memory"] == asked


@pytest.mark.parametrize("typed", ["inf", "nan", "1e400", "0.3"])
def test_a_number_that_is_none_is_refused_by_the_message(typed: str) -> None:
    form = empty("tiny")
    form["memory"], form["memory_unit"] = typed, "GB"

    with pytest.raises(Invalid, match="memory: must be a whole number"):
        prpc.load(VmConfiguration, configuration(form))


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (Invalid.field("name", "must not be empty"), {"name": "must not be empty"}),
        (Invalid.field("ports[1].host_port", "is odd"), {"ports": "row 2 host port is odd"}),
        (Invalid.field("networking.mode", "is odd"), {"networks": "mode is odd"}),
        (Invalid("both", {"vcpu": ["a"], "ports[0]": ["b", "c"]}), {"vcpu": "a", "ports": "row 1 b, c"}),
        (Invalid.field("disk_size", "can only grow"), {"disk_size": "can only grow"}),
        (Conflict("vcpu: this host allows 2: no more"), {"vcpu": "this host allows 2: no more"}),
        (Invalid.field("stopped", "is odd"), {"": "stopped: is odd"}),
        (Unavailable("QEMU ended at once: no"), {"": "QEMU ended at once: no"}),
        (Conflict("host port 80 is taken"), {"": "host port 80 is taken"}),
    ],
)  # fmt: skip
def test_a_reason_is_shown_at_the_field_it_speaks_of(
    refusal: Invalid, told: dict[str, str]
) -> None:
    assert reasons(refusal) == told
