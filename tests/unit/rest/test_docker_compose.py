"""What is read of docker-compose texts (the refusals, and texts that mean to cost time, are in unit/secretvm/test_document.py)."""

from __future__ import annotations

import pytest

from rest import docker_compose


def with_ports(ports: str) -> str:
    return f"services:\n  web:\n    image: x\n    ports: {ports}\n"


@pytest.mark.parametrize(
    ("ports", "published"),
    [
        ("['8080:80']", (8080,)),
        ("['80']", ()),
        ("[80]", ()),
        ("['127.0.0.1:8080:80']", ()),
        ("['[::1]:8080:80']", ()),
        ("['0.0.0.0:8080:80/tcp']", (8080,)),
        ("['53:53/udp', '53:53']", (53,)),
        ("['3000-3002:4000-4002']", (3000, 3001, 3002)),
        ("['${PORT:-8081}:80', '${PORT}:80']", (8081,)),
        ("[{target: 80, published: 8443}]", (8443,)),
        ("[{target: 80, published: '8443-8444', protocol: tcp}]", (8443, 8444)),
        ("[{target: 80, published: 8443, protocol: udp}]", ()),
        ("[{target: 80, published: 8443, host_ip: 127.0.0.1}]", ()),
        ("[{target: 80}]", ()),
        ("['70000:80', '0:80', 'x:y', {}, []]", ()),
        ("['8080:80', '8080:81']", (8080,)),
        ("8080", ()),
    ],
)
def test_the_tcp_ports_that_a_compose_text_publishes(
    ports: str, published: tuple[int, ...]
) -> None:
    assert docker_compose.published(with_ports(ports)) == published


def test_ports_of_a_merged_mapping_are_found() -> None:
    text = "x-base: &base {ports: ['8080:80']}\nservices:\n  web:\n    <<: *base\n    image: x\n"

    assert docker_compose.published(text) == (8080,)
