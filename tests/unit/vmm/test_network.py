from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config_cvm import NetworkingConfig, PortMappingConfig, PortRange
from core.errors import Conflict, Invalid
from tests.common.waiting import free_port
from vmm import network
from vmm.network import Nic, Port

RULES = PortMappingConfig(
    enabled=True, range=(PortRange("tcp", 1000, 2000), PortRange("tcp", 3000, 3000))
)


def check(
    protocol: str = "tcp",
    address: str = "",
    host_port: int = 1500,
    vm_port: int = 80,
    rules: PortMappingConfig = RULES,
) -> Port:
    return network.check_port(2, protocol, address, host_port, vm_port, rules)


def test_an_empty_address_is_the_configured_one() -> None:
    assert check() == Port("tcp", "127.0.0.1", 1500, 80)


@pytest.mark.parametrize("host_port", [1000, 2000, 3000])
def test_both_ends_of_a_range_belong_to_it(host_port: int) -> None:
    assert check(host_port=host_port).host_port == host_port


@pytest.mark.parametrize(
    ("address", "canonical"),
    [
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::1", "::1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
    ],
)
def test_addresses_are_kept_in_canonical_form(address: str, canonical: str) -> None:
    assert check(address=address).host_address == canonical


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("protocol", {"protocol": "sctp"}),
        ("protocol", {"protocol": ""}),
        ("protocol", {"protocol": "TCP"}),
        ("host_port", {"host_port": 0}),
        ("host_port", {"host_port": 999}),
        ("host_port", {"host_port": 2001}),
        ("host_port", {"host_port": 65536}),
        ("host_port", {"protocol": "udp"}),
        ("vm_port", {"vm_port": 0}),
        ("vm_port", {"vm_port": 65536}),
        ("host_address", {"address": "localhost"}),
        ("host_address", {"address": "127.0.0.1/8"}),
        ("host_address", {"address": "127.0.0.1 "}),
        ("host_address", {"address": "127.1"}),
        ("host_address", {"address": "1,hostfwd=tcp::22-:22"}),
        # Python takes any text as the zone of an IPv6 address: it would end up in QEMU's option.
        ("host_address", {"address": "fe80::1%eth0"}),
        ("host_address", {"address": "::1%x,guestfwd=tcp:10.0.2.9:1-cmd:reboot"}),
    ],
)
def test_a_refusal_names_the_part_of_the_mapping(part: str, wrong: dict[str, object]) -> None:
    with pytest.raises(Invalid) as refusal:
        check(**wrong)  # type: ignore[arg-type]

    assert list(refusal.value.fields) == [f"ports[2].{part}"]


def test_a_port_outside_tells_the_ranges() -> None:
    with pytest.raises(
        Invalid, match=r"2500 is outside the ranges allowed for tcp \(1000-2000, 30"
    ):
        check(host_port=2500)
    with pytest.raises(Invalid, match=r"allowed for udp \(none\)"):
        check(protocol="udp")


def test_a_host_without_port_mapping_says_how_to_have_it() -> None:
    with pytest.raises(Invalid, match=r"ports: port mapping is off; set cvm\.port_mapping"):
        check(rules=PortMappingConfig(enabled=False))


@given(st.text() | st.ip_addresses().map(str), st.integers(), st.integers(), st.text())
def test_what_is_accepted_holds_no_separator_of_qemu(
    address: str, host_port: int, vm_port: int, protocol: str
) -> None:
    try:
        port = check(protocol or "tcp", address, host_port, vm_port)
    except Invalid:
        return

    assert not set(str(port)) & set(",=%\n")


@pytest.mark.parametrize(
    ("one", "other", "collide"),
    [
        ("tcp 127.0.0.1 80", "tcp 127.0.0.1 80", True),
        ("tcp 127.0.0.1 80", "tcp 127.0.0.1 81", False),
        ("tcp 127.0.0.1 80", "udp 127.0.0.1 80", False),
        ("tcp 127.0.0.1 80", "tcp 127.0.0.2 80", False),
        ("tcp 0.0.0.0 80", "tcp 127.0.0.1 80", True),
        ("tcp :: 80", "tcp 127.0.0.1 80", True),
        ("tcp :: 80", "tcp ::1 80", True),
        ("tcp 0.0.0.0 80", "tcp :: 80", True),
        ("tcp 0.0.0.0 80", "udp :: 80", False),
        ("tcp ::1 80", "tcp 127.0.0.1 80", False),
    ],
)
def test_ports_collide_when_both_cannot_be_bound(one: str, other: str, collide: bool) -> None:
    ports = [
        Port(protocol, address, int(number), 1)
        for protocol, address, number in (text.split() for text in (one, other))
    ]

    assert ports[0].collides_with(ports[1]) == collide
    assert ports[1].collides_with(ports[0]) == collide


def test_two_mappings_of_one_request_may_not_collide() -> None:
    apart = [Port("tcp", "127.0.0.1", 80, 80), Port("tcp", "127.0.0.1", 81, 80)]
    network.check_apart(apart)

    with pytest.raises(Invalid, match=r"ports\[2\]\.host_port: tcp 0\.0\.0\.0:81 is mapped twice"):
        network.check_apart([*apart, Port("tcp", "0.0.0.0", 81, 1)])


def test_a_port_of_another_vm_is_a_conflict_that_names_it() -> None:
    port = Port("tcp", "127.0.0.1", 80, 80)
    network.check_free([port], [Port("udp", "127.0.0.1", 80, 80)])

    with pytest.raises(Conflict, match=r"host port tcp 127\.0\.0\.1:80 is already used"):
        network.check_free([port], [Port("tcp", "0.0.0.0", 80, 9)])


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_port_that_some_program_has_is_a_conflict_that_names_it(
    protocol: str, address: str
) -> None:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as holder:
        holder.bind((address, 0))
        if protocol == "tcp":
            holder.listen()
        port = Port(protocol, address, holder.getsockname()[1], 80)

        with pytest.raises(Conflict, match=f"host port {protocol} {address}:.* cannot be bound"):
            network.check_bindable([port])

    network.check_bindable([port])


def test_a_connection_that_just_ended_is_no_obstacle() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", number)):
            server.accept()[0].close()  # the side that closes first keeps TIME_WAIT

    network.check_bindable([Port("tcp", "127.0.0.1", number, 80)])


def test_an_address_that_the_host_does_not_have_is_a_conflict() -> None:
    with pytest.raises(Conflict, match=r"192\.0\.2\.1.* cannot be bound"):
        network.check_bindable([Port("tcp", "192.0.2.1", free_port(), 80)])


def test_mac_addresses_are_those_of_dstack() -> None:
    # vmm.md section 8.
    assert network.mac_address("vm-123") == "96:b1:d8:b9:08:e6"
    assert network.mac_address("vm-123", 1) == "c6:74:2c:65:14:b9"


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("52", "52:b1:d8:b9:08:e6"),
        ("52:54", "52:54:d8:b9:08:e6"),
        ("02:54:01", "02:54:01:b9:08:e6"),
    ],
)
def test_a_prefix_replaces_up_to_three_bytes(prefix: str, expected: str) -> None:
    assert network.mac_address("vm-123", prefix=prefix) == expected


@given(st.text(), st.integers(0, 9), st.binary(max_size=3).map(lambda raw: raw.hex(":")))
def test_every_mac_is_local_and_unicast(vm_id: str, index: int, prefix: str) -> None:
    first = int(network.mac_address(vm_id, index, prefix)[:2], 16)

    assert first & 0b11 == 0b10


NODE = NetworkingConfig(bridge="br0", bridges=("br1",), netdev="tap,id={id}")


@pytest.mark.parametrize(
    ("networking", "networks", "cards"),
    [
        (None, [], (Nic("user"),)),
        ({"mode": ""}, [], (Nic("user"),)),
        ({"mode": "bridge"}, [], (Nic("bridge", "br0"),)),
        ({"mode": "bridge", "bridge_name": "br1"}, [], (Nic("bridge", "br1"),)),
        ({"mode": "passt"}, [{"mode": "custom"}], (Nic("custom"),)),  # the list wins
        (None, [{"mode": "user"}, {"mode": ""}], (Nic("user"), Nic("user"))),
    ],
)
def test_cards_are_as_asked_for_or_else_the_nodes(
    networking: dict[str, str] | None, networks: list[dict[str, str]], cards: tuple[Nic, ...]
) -> None:
    assert network.check_nics(networking, networks, NODE) == cards


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"mode": "tap"}, "networking.mode"),
        ({"mode": "user", "bridge_name": "br0"}, "networking.bridge_name"),
        ({"mode": "bridge", "bridge_name": "br2"}, "networking.bridge_name"),
        ({"mode": "bridge", "bridge_name": "br0,helper=/bin/sh"}, "networking.bridge_name"),
    ],
)
def test_no_text_of_a_request_becomes_an_option(wanted: dict[str, str], field: str) -> None:
    with pytest.raises(Invalid) as refusal:
        network.check_nics(None, [wanted], NODE)

    assert list(refusal.value.fields) == [field]


@pytest.mark.parametrize("mode", ["bridge", "custom"])
def test_a_mode_that_the_node_has_not_set_up_is_refused(mode: str) -> None:
    with pytest.raises(Invalid, match=r"networking\.mode: \w+ needs cvm\.networking\."):
        network.check_nics({"mode": mode}, [], NetworkingConfig())


def test_an_ipv6_host_port_needs_a_card_that_can_have_it() -> None:
    ports = (Port("tcp", "127.0.0.1", 1500, 80), Port("tcp", "2001:db8::1", 1500, 80))

    with pytest.raises(
        Invalid, match=r"ports\[1\]\.host_address: 2001:db8::1 needs .* passt or bridge"
    ):
        network.check_reachable(ports, (Nic("bridge", "br0"), Nic("user")))
    network.check_reachable(ports, (Nic("passt"), Nic("user")))
    network.check_reachable(ports, (Nic("bridge", "br0"),))
