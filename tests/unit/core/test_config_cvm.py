"""The table [cvm]."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import config as configuration
from core.config import Config
from core.errors import Invalid


def load(folder: Path, text: str) -> Config:
    file = folder / "casemate.toml"
    file.write_text(text)
    return configuration.load(file)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[cvm]\nplatform = "sgx"', "cvm.platform"),
        ('[cvm]\naccel = "hvf"', "cvm.accel"),
        ('[cvm]\nchannel = "tcp"', "cvm.channel"),
        ('[cvm]\nhost_share_mode = "nfs"', "cvm.host_share_mode"),
        ('[cvm.networking]\nmode = "tap"', "cvm.networking.mode"),
        ('[cvm.networking]\nmac_prefix = "zz"', "cvm.networking.mac_prefix"),
        ('[cvm.networking]\nmac_prefix = "52:54:00:12"', "cvm.networking.mac_prefix"),
        ('[cvm.port_mapping]\naddress = "localhost"', "cvm.port_mapping.address"),
        ("[cvm.port_mapping]\nrange = [{from = 0, to = 1}]", "cvm.port_mapping.range"),
        ("[cvm.port_mapping]\nrange = [{from = 2, to = 1}]", "cvm.port_mapping.range"),
        ("[cvm.port_mapping]\nrange = [{from = 1, to = 65536}]", "cvm.port_mapping.range"),
        ('[cvm.port_mapping]\nrange = [{protocol = "sctp"}]', "cvm.port_mapping.range"),
        ('[cvm.networking]\nmode = "bridge"', "cvm.networking.bridge"),
        ('[cvm.networking]\nbridge = "br0,br=x"', "cvm.networking.bridge"),
        ('[cvm.networking]\nbridges = ["a/b"]', "cvm.networking.bridge"),
        ('[cvm.networking]\nmode = "custom"', "cvm.networking.netdev"),
        ('[cvm.networking]\nnetdev = "tap,ifname=t0"', "cvm.networking.netdev"),
        ('[cvm.networking]\nnet = "10.0.2.0/33"', "cvm.networking.net"),
        ('[cvm.networking]\nnet = "10.0.2.0/24,restrict=no"', "cvm.networking.net"),
        ('[cvm.networking]\ndhcp_start = "10.0.3.1"', "cvm.networking.dhcp_start"),
    ],
)
def test_a_bad_value_is_refused_by_its_key(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(Invalid) as refusal:
        load(tmp_path, text)

    assert list(refusal.value.fields) == [key]
