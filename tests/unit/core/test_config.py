from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core import config as configuration
from core.config import Config, ServerConfig
from core.config_cvm import CvmConfig, PortRange
from core.errors import Invalid


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ADDRESS", "DATA_DIR", "ADMIN_TOKEN", "CACHE_DIR"):
        monkeypatch.delenv(f"CASEMATE_{name}", raising=False)


def load(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "casemate.toml"
    file.write_text(text)
    return configuration.load(file)


def test_without_a_file_everything_has_dstacks_default() -> None:
    config = configuration.load()

    assert config.address == "unix:./vmm.sock"
    assert config.kms_url == "http://127.0.0.1:8081"
    assert (config.event_buffer_size, config.node_name) == (20, "")
    assert (config.cvm.platform, config.cvm.cid_start, config.cvm.cid_pool_size) == (
        "auto",
        1000,
        1000,
    )
    assert (config.cvm.max_allocable_vcpu, config.cvm.max_allocable_memory_in_mb) == (20, 100_000)
    mapping = config.cvm.port_mapping
    assert (mapping.enabled, mapping.address) == (False, "127.0.0.1")
    assert mapping.range == (PortRange("tcp", 1, 20000),)
    restart = config.cvm.auto_restart
    assert (restart.enabled, restart.interval, restart.max_retries) == (True, 20, 5)
    assert (restart.initial_backoff, restart.max_backoff, restart.reset_window) == (5, 300, 300)
    log = config.cvm.log
    assert (log.max_bytes, log.max_backups, log.check_interval_secs) == (4 * 1024**2, 3, 5)
    assert (config.gateway.base_domain, config.gateway.port, config.gateway.agent_port) == (
        "localhost",
        8082,
        8090,
    )
    assert (config.auth.enabled, config.auth.tokens) == (False, ())
    assert not config.cvm.simulate


def test_paths_are_absolute_and_below_the_data_directory(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data_dir)

    config = configuration.load()

    assert config.data_dir == data_dir / "data"
    assert config.run_path == data_dir / "data/vm"
    assert config.image.path == data_dir / "data/images"
    assert config.database == data_dir / "data/casemate.db"
    assert config.tee_dir == data_dir / "data/tee"


def test_a_file_sets_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        address = "tcp:[::1]:9080"
        data_dir = "/srv/casemate"
        [image]
        path = "/srv/images"
        [cvm]
        kms_urls = ["https://kms"]
        [cvm.log]
        max_bytes = "8M"
        [cvm.networking]
        mac_prefix = "52:54:00"
        [cvm.port_mapping]
        enabled = true
        range = [{protocol = "udp", from = 5, to = 6}, {protocol = "tcp", from = 7, to = 7}]
        [auth]
        tokens = ["a", "b"]
        """,
    )

    assert config.address == "tcp:[::1]:9080"
    assert config.run_path == Path("/srv/casemate/vm")
    assert config.image.path == Path("/srv/images")
    assert config.cvm.kms_urls == ("https://kms",)
    assert config.cvm.log.max_bytes == 8 * 1024**2
    assert config.cvm.port_mapping.range == (PortRange("udp", 5, 6), PortRange("tcp", 7, 7))
    assert config.auth.tokens == ("a", "b")
    assert config.cvm.cid_start == CvmConfig().cid_start


def test_the_administrators_token_is_not_taken_from_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load(tmp_path, 'admin_token = "hunter2"')

    assert config.admin_token == ""
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('address = "127.0.0.1:80"', "address"),
        ('address = "tcp:127.0.0.1"', "address"),
        ('address = "tcp:127.0.0.1:70000"', "address"),
        ('data_dir = "/srv/a,b"', "data_dir"),
        ('data_dir = "/srv/a=b"', "data_dir"),
        ('run_path = "/srv/a,b"', "run_path"),
        (f'data_dir = "/{"d" * 60}"', "run_path"),
        ("[cvm]\ncid_start = 2", "cvm.cid_start"),
        ("[cvm.auto_restart]\ninitial_backoff = 0", "cvm.auto_restart.initial_backoff"),
        (
            "[cvm.auto_restart]\ninitial_backoff = 9\nmax_backoff = 8",
            "cvm.auto_restart.initial_backoff",
        ),
        ("[server]\nthreads = 0", "server.threads"),
        ("[cvm]\ncid_pool_size = 0", "cvm.cid_pool_size"),
        ('[cluster]\naddress = "localhost"', "cluster.address"),
        ("[cluster]\nports = [20000]", "cluster.ports"),
        ("[cluster]\nports = [20999, 20000]", "cluster.ports"),
        ("[cvm]\ncid_start = 4294967294\ncid_pool_size = 2", "cvm.cid_pool_size"),
        ("[cvm]\nqgs_port = 4294967296", "cvm.qgs_port"),
        ('[cvm]\nqemu_pic = "yes"', "cvm.qemu_pic"),
        ('[cvm]\nqemu_version = "9"', "cvm.qemu_version"),
        ('[cvm]\nuser = "a b"', "cvm.user"),
        ('[cvm]\npccs_url = "localhost:8081"', "cvm.pccs_url"),
        ('[cvm]\nkms_urls = ["https://"]', "cvm.kms_urls"),
        ('[cvm]\ngateway_urls = ["https://a", "ftp://b"]', "cvm.gateway_urls"),
        ('kms_url = "https://a:99999"', "kms_url"),
        ('[cvm.gpu]\nlisting = ["2335"]', "cvm.gpu.listing"),
        ('[cvm.gpu]\nexclude = ["gpu0"]', "cvm.gpu.exclude"),
        ('[cvm.gpu]\ninclude = ["3b:00"]', "cvm.gpu.include"),
        ('[host_api]\naddress = "tcp:1"', "host_api.address"),
        ("[host_api]\nport = 0", "host_api.port"),
        ("[key_provider]\nport = 65536", "key_provider.port"),
        ("[gateway]\nagent_port = 0", "gateway.agent_port"),
        ("[cvm.auto_restart]\ninterval = 0", "cvm.auto_restart.interval"),
    ],
)
def test_a_bad_value_is_refused_by_its_key(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(Invalid) as refusal:
        load(tmp_path, text)

    assert list(refusal.value.fields) == [key]


@pytest.mark.parametrize("text", ["address =", "[cvm", "a = 1\na = 2"])
def test_a_file_that_is_not_toml_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(Invalid, match=r"casemate\.toml: "):
        load(tmp_path, text)


def test_a_file_that_is_not_there_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"nothing\.toml: .*No such file"):
        configuration.load(tmp_path / "nothing.toml")


def test_a_file_that_is_not_text_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "casemate.toml").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(Invalid, match=r"casemate\.toml: "):
        configuration.load(tmp_path / "casemate.toml")


def test_the_environment_has_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASEMATE_ADDRESS", "tcp:127.0.0.1:1")
    monkeypatch.setenv("CASEMATE_DATA_DIR", "/srv/other")
    monkeypatch.setenv("CASEMATE_ADMIN_TOKEN", "hunter2")

    config = load(tmp_path, 'address = "unix:a"\ndata_dir = "/srv/casemate"')

    assert (config.address, config.data_dir) == ("tcp:127.0.0.1:1", Path("/srv/other"))
    assert config.run_path == Path("/srv/other/vm")
    assert config.admin_token == "hunter2"


def test_an_empty_variable_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASEMATE_ADDRESS", "")
    monkeypatch.setenv("CASEMATE_DATA_DIR", "")

    config = load(tmp_path, 'address = "unix:a"\ndata_dir = "/srv/casemate"')

    assert (config.address, config.data_dir) == ("unix:a", Path("/srv/casemate"))


def test_the_url_that_clients_use_is_no_address_to_listen_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASEMATE_ADDRESS", "https://casemate.example.org")

    assert load(tmp_path, 'address = "unix:a"').address == "unix:a"


def test_tokens_are_not_shown_by_repr() -> None:
    config = configuration.load()
    shown = repr(
        replace(config, admin_token="hunter2", auth=replace(config.auth, tokens=("hunter3",)))
    )

    assert "hunter" not in shown


def test_the_longest_socket_of_the_longest_allowed_data_directory_can_be_bound() -> None:
    room = 107 - len("/vm/") - 36 - len("/passt7/run/sock")
    longest = Path("/" + "d" * (room - 1))

    fits = configuration.check(Config(data_dir=longest, run_path=longest / "vm"))

    assert len(str(fits.run_path / ("i" * 36) / "passt7/run/sock")) == 107
    with pytest.raises(Invalid, match="run_path"):
        configuration.check(Config(data_dir=longest, run_path=longest / "vmm"))


def test_a_server_needs_a_worker() -> None:
    with pytest.raises(Invalid, match="server"):
        configuration.check(Config(server=ServerConfig(workers=0)))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"CASEMATE_CACHE_DIR": "/c"}, "/c"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/casemate"),
        ({"HOME": "/home/ann"}, "/home/ann/.cache/casemate"),
    ],
)
def test_the_cache_directory_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, Any], expected: str
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert configuration.cache_dir() == Path(expected)


def test_what_is_left_open_and_what_is_switched_off_are_told_apart(tmp_path: Path) -> None:
    assert load(tmp_path, "").cvm.qemu_pic is None
    assert load(tmp_path, "[cvm]\nqemu_pic = false").cvm.qemu_pic is False


@pytest.mark.parametrize(
    "text",
    [
        '[cvm.networking]\nmode = "bridge"\nbridge = "br-lan.1"',
        '[cvm.networking]\nmode = "custom"\nnetdev = "tap,id={id},ifname=t0"',
        '[cvm.networking]\nmode = "custom"\nnetdev = "tap,id=net0,ifname=t0"',
        '[cvm.networking]\nnet = "192.168.7.0/28"\ndhcp_start = "192.168.7.3"',
        '[cvm]\nkms_urls = ["https://[::1]:9201/kms"]',
        '[cvm.gpu]\nexclude = ["3b:00.0", "0000:86:00.7"]',
        '[auth]\nhtpasswd_file = "/etc/casemate.htpasswd"',
    ],
)
def test_a_good_value_is_taken(tmp_path: Path, text: str) -> None:
    load(tmp_path, text)
