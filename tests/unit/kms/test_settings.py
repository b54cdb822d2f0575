"""The configuration file of `casemate kms`."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import Invalid
from kms import settings

WEBHOOK = '[core.auth_api.webhook]\nurl = "http://auth.example/"\n'


def load(tmp_path: Path, text: str) -> settings.Settings:
    (tmp_path / "kms.toml").write_text(text)
    return settings.load(tmp_path / "kms.toml")


def test_a_whole_file_is_read_with_paths_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    given = load(
        tmp_path,
        'address = "tcp:0.0.0.0:9201"\ndata_dir = "here"\n'
        '[core]\nsite_name = "s"\nsubject_postfix = ".dstack"\nenforce_self_authorization = false\n'
        '[core.image]\nverify = false\nlocal_dir = "images"\ndownload_timeout = "90s"\n'
        '[core.auth_api]\ntype = "file"\n[core.auth_api.file]\npath = "p.json"\n'
        '[core.onboard]\nauto_bootstrap_domain = "kms.example"\n'
        '[core.admin]\nenabled = true\ntoken = "t"\n',
    )

    assert given.data_dir == tmp_path / "here"
    assert given.core.cert_dir == tmp_path / "here/certs"
    assert given.core.auth_api.file.path == tmp_path / "p.json"
    assert given.core.image.local_dir == tmp_path / "images"
    assert given.core.image.cache_dir == tmp_path / "here/images"
    assert given.audit_log == tmp_path / "here/audit.jsonl"
    assert given.tee_dir == tmp_path / "here/tee"
    assert settings.download_timeout_s(given.core.image) == 90
    assert "t" not in repr(given.core.admin).split("token")[0][-1:]


def test_an_unknown_key_warns_and_is_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(tmp_path, f"[core]\nsimulat = true\n{WEBHOOK}")

    assert "core.simulat is ignored; did you mean simulate?" in caplog.text


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("x", "kms.toml"),
        ('address = "unix:x"\n' + WEBHOOK, "address"),
        ('address = "tcp:127.0.0.1:70000"\n' + WEBHOOK, "address"),
        ("workers = 0\n" + WEBHOOK, "workers"),
        ("", "core.auth_api.webhook.url"),
        ('[core.auth_api]\ntype = "other"', "core.auth_api.type"),
        ('[core.auth_api.webhook]\nurl = "ftp://x"', "core.auth_api.webhook.url"),
        ('[core.auth_api]\ntype = "ethereum"', "core.auth_api.ethereum.rpc_url"),
        (
            '[core.auth_api]\ntype = "ethereum"\n'
            + '[core.auth_api.ethereum]\nrpc_url = "http://x"\ncontract = "0x12"',
            "core.auth_api.ethereum.contract",
        ),
        (WEBHOOK + '[core.onboard]\nauto_bootstrap_domain = "a..b"', "auto_bootstrap_domain"),
        (WEBHOOK + '[core.onboard]\naddress = "here"', "core.onboard.address"),
        (WEBHOOK + "[core.admin]\nenabled = true", "core.admin: needs a token"),
        (WEBHOOK + '[core.attestation]\npccs_url = "x"', "core.attestation.pccs_url"),
        (WEBHOOK + '[core.image]\ndownload_timeout = "soon"', "core.image.download_timeout"),
        (
            WEBHOOK + '[core.image]\ndownload_url = "https://images.example"',
            "core.image.download_url",
        ),
        (WEBHOOK + '[core.image]\ndownload_url = "{OS_IMAGE_HASH}"', "core.image.download_url"),
        (
            WEBHOOK + '[core.attestation.root_ca]\ntdx = "/x.pem"',
            "insecure_allow_external_trust_anchors",
        ),
        ("[core]\nsimulate = 1\n" + WEBHOOK, "core.simulate"),
    ],
)
def test_a_bad_value_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, names: str
) -> None:
    for name in ("DSTACK_KMS_ADMIN_TOKEN", "ADMIN_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(Invalid, match=names):
        load(tmp_path, text)


def test_a_contract_is_named_by_its_address(tmp_path: Path) -> None:
    given = load(
        tmp_path,
        '[core.auth_api]\ntype = "ethereum"\n[core.auth_api.ethereum]\n'
        + f'rpc_url = "https://rpc.example"\ncontract = "0x{"ab" * 20}"\n',
    )

    assert given.core.auth_api.ethereum.contract == "0x" + "ab" * 20


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"none\.toml"):
        settings.load(tmp_path / "none.toml")


@pytest.mark.parametrize("name", ["DSTACK_KMS_ADMIN_TOKEN", "ADMIN_API_TOKEN"])
def test_the_admin_token_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "from-outside")

    given = load(tmp_path, WEBHOOK + "[core.admin]\nenabled = true")
    own = load(tmp_path, WEBHOOK + '[core.admin]\nenabled = true\ntoken = "own"')

    assert given.core.admin.token == "from-outside"
    assert own.core.admin.token == "own"


@pytest.mark.parametrize(
    "domain",
    [
        "",
        "a" * 64,
        ".".join(["a" * 63] * 4),
        "-a.b",
        "a-.b",
        "a_b",
        "bücher.example",
        "a b",
        "a.",
        "*.b",
        "a\n",
    ],
)
def test_what_is_no_domain_is_refused(domain: str) -> None:
    with pytest.raises(Invalid, match="domain"):
        settings.check_domain(domain)


@pytest.mark.parametrize(
    "domain", ["a", "kms.example", "a-b.1c", "10.0.2.2", ".".join(["a" * 61] * 4)]
)
def test_a_domain_is_taken_as_it_is(domain: str) -> None:
    assert settings.check_domain(domain) == domain
