from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from secretvm import front
from secretvm.front import Front, Health, Server, Strategy, Traffic

SCRIPT = b"-- a script"
PLAIN = Front(
    id="0b9ad1c4-9bd5-4bd6-a3a0-6b1c2a5f7f10",
    address="127.0.0.1",
    port=20000,
    strategy=Strategy.ROUNDROBIN,
    sticky=False,
    max_connections=1000,
    password_hash=None,
    backend_scheme="http",
    health=Health("http", "/health", 5, 3),
    servers=(
        Server(1, "127.0.0.1", 21001, 21002, weight=3),
        Server(2, "127.0.0.1", 21003, 21004, weight=1),
    ),
)
CASES = {
    "none": [],
    "plain": [PLAIN],
    "tls": [replace(PLAIN, backend_scheme="https", health=Health("https", "/cpu", 5, 5))],
    "password": [replace(PLAIN, password_hash="$6$salt$hash")],
    "ipv6": [replace(PLAIN, address="::1")],
    **{
        f"{strategy}{'-sticky' if sticky else ''}": [
            replace(PLAIN, strategy=strategy, sticky=sticky)
        ]
        for strategy in Strategy
        for sticky in (False, True)
    },
    "traffic": [
        replace(
            PLAIN,
            servers=(
                replace(PLAIN.servers[0], traffic=Traffic.DRAIN),
                replace(PLAIN.servers[1], traffic=Traffic.CLOSED),
                Server(3, "127.0.0.1", 21005, 21006, traffic=Traffic.LEAVING),
            ),
        )
    ],
    "two": [PLAIN, replace(PLAIN, id="5d6b7f6e-1111-4bd6-a3a0-6b1c2a5f7f10", port=20001)],
}


@pytest.mark.parametrize("name", CASES)
def test_a_configuration_is_as_its_golden_file_has_it(
    golden: Callable[[str, str], None], name: str
) -> None:
    golden(f"haproxy/{name}.cfg", front.render(CASES[name], SCRIPT))


def test_what_changes_of_nodes_makes_no_other_revision() -> None:
    before = front.render([PLAIN], SCRIPT)
    drained = replace(PLAIN.servers[0], traffic=Traffic.DRAIN, weight=9, port=21999)

    after = front.render([replace(PLAIN, servers=(drained,))], SCRIPT)

    assert after != before
    assert front.revision(after) == front.revision(before)


@pytest.mark.parametrize(
    "changed",
    [
        {"port": 20001},
        {"strategy": Strategy.P2C},
        {"sticky": True},
        {"max_connections": 5},
        {"password_hash": "$6$a$b"},
        {"backend_scheme": "https"},
        {"health": Health("http", "/other", 5, 3)},
    ],
)
def test_what_changes_of_a_front_makes_another_revision(changed: dict[str, object]) -> None:
    before = front.revision(front.render([PLAIN], SCRIPT))

    after = front.revision(front.render([replace(PLAIN, **changed)], SCRIPT))  # type: ignore[arg-type]

    assert after != before
    assert front.revision(front.render([PLAIN], b"-- another script")) != before


def test_the_revision_stands_in_the_configuration() -> None:
    text = front.render([PLAIN], SCRIPT)

    assert f"  description {front.revision(text)}\n" in text


def test_the_commands_bring_every_place_to_its_state() -> None:
    lines = list(front.commands(CASES["traffic"][0], closed=["n1", "n2"]))

    states = [line for line in lines if " state " in line]
    name = PLAIN.id
    assert states == [
        f"set server {name}/n1 state drain; set server {name}/n1 health down",
        f"set server {name}/n2 state maint",
        f"set server {name}/n3 state drain",
    ]
    assert f"set server {name}/n1 addr 127.0.0.1 port 21001" in lines
    assert f"set server {name}/n2 weight 1" in lines


def test_a_node_that_comes_back_waits_for_its_check() -> None:
    lines = list(front.commands(PLAIN, closed=["n1"]))

    assert f"set server {PLAIN.id}/n1 state ready; set server {PLAIN.id}/n1 health down" in lines
    assert f"set server {PLAIN.id}/n2 state ready" in lines


def test_clusters_have_cookies_of_their_own() -> None:
    # Browsers send one of a host to all its ports.
    assert front.cookie(PLAIN.id) != front.cookie(CASES["two"][1].id)
