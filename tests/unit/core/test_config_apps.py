from __future__ import annotations

from pathlib import Path

import pytest

from core import config as configuration
from core.config_apps import SIZES, AppsConfig
from core.errors import Invalid

KEY = "0123456789abcdef"


def load(folder: Path, text: str) -> AppsConfig:
    file = folder / "casemate.toml"
    file.write_text(f'data_dir = "{folder}"\n[apps]\n{text}\n')
    return configuration.load(file).apps


def test_without_a_table_a_host_has_one_node_and_four_sizes(data_dir: Path) -> None:
    apps = load(data_dir, "")

    assert (apps.node_id, apps.node_name, apps.region, apps.device_id) == (1, "", "local", "")
    assert (apps.kms, apps.chains, apps.instance_types) == ((), (), SIZES)
    assert [(each.id, each.vcpu, each.memory_mb, each.disk_gb) for each in SIZES] == [
        ("tdx.small", 1, 2048, 20),
        ("tdx.medium", 2, 4096, 20),
        ("tdx.large", 4, 8192, 20),
        ("tdx.xlarge", 8, 16384, 20),
    ]


def test_a_whole_table_is_read(data_dir: Path) -> None:
    apps = load(
        data_dir,
        f"""
node_id = 7
device_id = "{"ab" * 32}"
[[apps.kms]]
slug = "main"
url = "https://127.0.0.1:9201"
[[apps.kms]]
slug = "chain"
type = "ethereum"
url = "http://127.0.0.1:9202"
guest_urls = ["https://10.0.2.2:9202"]
chain_id = 31337
contract_address = "0x{"Aa" * 20}"
[[apps.chains]]
chain_id = 31337
rpc_url = "http://127.0.0.1:8545/{KEY}"
multicall = "none"
[[apps.instance_types]]
id = "tiny"
memory_mb = 512
""",
    )

    main, chain = apps.kms
    assert (main.type, main.chain_id, main.guest_urls) == ("phala", 0, ())
    assert (chain.chain_id, chain.guest_urls) == (31337, ("https://10.0.2.2:9202",))
    assert (apps.chains[0].timeout_s, apps.chains[0].multicall) == (3, "none")
    assert (apps.node_id, apps.device_id) == (7, "ab" * 32)
    assert [(each.id, each.vcpu) for each in apps.instance_types] == [("tiny", 1)]
    assert KEY not in repr(apps)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("device_id = 'ab'", "apps.device_id"),
        ("kms = [{slug = 'Main', url = 'http://h'}]", "apps.kms.slug"),
        ("kms = [{slug = 'a', url = 'http://h'}, {slug = 'a', url = 'http://h'}]", "apps.kms.slug"),
        ("kms = [{slug = 'a', type = 'solana', url = 'http://h'}]", "apps.kms.type"),
        ("kms = [{slug = 'a', url = 'ftp://h'}]", "apps.kms.url"),
        ("kms = [{slug = 'a'}]", "apps.kms.url"),
        ("kms = [{slug = 'a', url = 'http://h', guest_urls = ['h']}]", "apps.kms.url"),
        (
            "kms = [{slug = 'a', url = 'http://h', contract_address = '0xaa'}]",
            "apps.kms.contract_address",
        ),
        ("chains = [{rpc_url = 'http://h'}]", "apps.chains.chain_id"),
        ("chains = [{chain_id = 1, rpc_url = 'http://h', timeout_s = 0}]", "apps.chains.timeout_s"),
        (
            "chains = [{chain_id = 1, rpc_url = 'http://h', timeout_s = 11}]",
            "apps.chains.timeout_s",
        ),
        (
            "chains = [{chain_id = 1, rpc_url = 'http://h', multicall = 'yes'}]",
            "apps.chains.multicall",
        ),
        (
            "chains = [{chain_id = 1, rpc_url = 'http://h'}, {chain_id = 1, rpc_url = 'http://h'}]",
            "apps.chains.chain_id",
        ),
        ("instance_types = [{id = 'a b'}]", "apps.instance_types.id"),
        ("instance_types = [{id = 'a'}, {id = 'a'}]", "apps.instance_types.id"),
        ("instance_types = [{id = 'a', vcpu = 0}]", "apps.instance_types"),
        ("instance_types = []", "apps.instance_types"),
        ("node_id = 0", "apps.node_id"),
        ("kms = [{slug = 'a', url = 'http://h', chain_id = -1}]", "apps.kms.chain_id"),
    ],
)
def test_a_setting_that_cannot_be_is_named(data_dir: Path, text: str, named: str) -> None:
    with pytest.raises(Invalid) as refused:
        load(data_dir, text)

    assert named in refused.value.message


def test_the_address_of_a_chain_is_not_told_as_it_may_hold_a_key(data_dir: Path) -> None:
    with pytest.raises(Invalid) as refused:
        load(data_dir, f"chains = [{{chain_id = 1, rpc_url = 'ws://h/{KEY}'}}]")

    assert "apps.chains.rpc_url" in refused.value.message
    assert KEY not in refused.value.message
