"""A real `casemate kms` and simulated guests that ask it for keys over RA-TLS."""

from __future__ import annotations

import base64
import json
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attest import ratls
from attest.csr import MAX_ALT_NAMES
from attest_sim.tdx import SimulatedPlatform
from core import certs, proc, protobuf
from core.errors import CasemateError, Upstream
from guest.identity import App
from kms import schemas
from tests.common.kms import OS_IMAGE, ROOT, RunningKms, booted, write_app
from tests.common.waiting import free_port, until

SEED = bytes(range(32))
pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")


@pytest.fixture(scope="module")
def platform() -> SimulatedPlatform:
    return SimulatedPlatform.from_seed(SEED)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, platform: SimulatedPlatform) -> Path:
    """A folder with a simulated app and with the root that its KMS is to believe."""
    made = tmp_path_factory.mktemp("kms")
    (made / "tee").mkdir()
    (made / "tee/tee-root-ca.pem").write_text(platform.root_ca_pem)
    now = int(datetime.now(UTC).timestamp())
    (made / "tee/tee-collateral.json").write_text(platform.collateral_json(now))
    return made


@pytest.fixture(scope="module")
def kms(home: Path) -> Iterator[RunningKms]:
    """A KMS with a policy file and an admin listener, which proves itself with its own simulated TEE."""
    admin = free_port()
    running = RunningKms(
        home / "kms",
        tables='[core.auth_api]\ntype = "file"\n[core.admin]\nenabled = true\n'
        f'token = "admin-token-of-the-test"\naddress = "tcp:127.0.0.1:{admin}"\n',
    )
    running.trust(home / "tee")
    running.write_config()
    own = running.own_measurements()
    running.policy("allow", "--os-image", OS_IMAGE)
    running.policy("allow", "--os-image", own["osImageHash"])
    running.policy("allow", "--kms-mr", own["mrAggregated"], "--device", own["deviceId"])
    running.start()
    yield running
    running.stop()


@dataclass
class Asking:
    """An app of the test and its entry in the policy."""

    kms: RunningKms
    folder: Path
    app: App

    @property
    def app_id(self) -> str:
        return self.app.compose_hash.hex()[:40]

    def released(self) -> list[str]:
        """The calls by which this app was given something."""
        return [each["method"] for each in self.kms.audited() if each["appId"] == self.app_id]

    @property
    def names(self) -> tuple[str, ...]:
        return "--app", self.app_id, "--compose", self.app.compose_hash.hex()


@pytest.fixture
def asking(kms: RunningKms, tmp_path: Path) -> Asking:
    """An app that the policy allows on any device."""
    write_app(tmp_path, kms.url, name=f"app {os.urandom(4).hex()}")
    seed = {"platform": "dstack-tdx", "seed": SEED.hex()}
    (tmp_path / "tee-seed").write_text(json.dumps(seed))
    made = Asking(kms, tmp_path, App.read(tmp_path / "app-compose.json"))
    kms.policy("allow", *made.names, "--any-device")
    return made


def test_an_allowed_app_gets_keys_and_a_record_is_written(asking: Asking) -> None:
    with booted(asking.folder) as agent:
        keys = agent.vm().keys
        provider = json.loads(keys.key_provider.info)

    assert provider["name"] == "kms"
    meta = asking.kms.call("GetMeta")
    root = x509.load_pem_x509_certificate(meta["ca_cert"].encode()).public_key()
    assert isinstance(root, ec.EllipticCurvePublicKey)
    assert provider["id"] == certs.spki_der(root).hex()
    assert asking.released()[0] == "GetAppKey"
    public = asking.kms.call("GetAppEnvEncryptPubKey", app_id=asking.app_id)["public_key"]
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    private = X25519PrivateKey.from_private_bytes(keys.env_crypt_key)
    assert private.public_key().public_bytes_raw().hex() == public


def test_keys_outlive_the_guest_and_the_kms(asking: Asking) -> None:
    with booted(asking.folder) as agent:
        before = agent.vm().keys
    asking.kms.stop()
    asking.kms.start()

    with booted(asking.folder) as agent:
        after = agent.vm().keys

    assert before == after


def test_an_app_is_refused_after_its_compose_hash_left_the_policy(asking: Asking) -> None:
    with booted(asking.folder):
        pass
    released = asking.released()

    asking.kms.policy("deny", *asking.names)

    with pytest.raises(Upstream, match="Boot denied: compose hash not allowed"):
        booted(asking.folder).__enter__()
    assert asking.released() == released


def test_a_kms_that_left_the_policy_itself_gives_nothing(asking: Asking) -> None:
    own = asking.kms.own_measurements()["mrAggregated"]
    asking.kms.policy("deny", "--kms-mr", own)
    try:
        with pytest.raises(Upstream, match="this KMS is not allowed: aggregated MR not allowed"):
            booted(asking.folder).__enter__()
    finally:
        asking.kms.policy("allow", "--kms-mr", own)


def test_certificates_of_the_app_come_from_its_kms(asking: Asking) -> None:
    with booted(asking.folder) as agent:
        made = agent.get_tls_key("app.example", ["app.example"], True, True, True, None, None, True)
        root = agent.vm().keys.ca_cert

    chain: Any = made["certificate_chain"]
    assert chain[2] == root
    for number, text in enumerate(chain):
        (asking.folder / f"{number}.pem").write_text(text)
    done = proc.run(
        ["openssl", "verify", "-x509_strict", "-purpose", "sslserver"]
        + ["-CAfile", str(asking.folder / "2.pem"), "-untrusted", str(asking.folder / "1.pem")]
        + [str(asking.folder / "0.pem")]
    )
    assert done.stdout.strip().endswith(b": OK")
    leaf = ratls.read(x509.load_pem_x509_certificate(chain[0].encode()))
    assert leaf.app_id is not None and leaf.app_id.hex() == asking.app_id
    assert leaf.app_info is not None and leaf.app_info.compose_hash == asking.app.compose_hash


def test_a_kms_certifies_as_many_names_as_an_agent_takes(asking: Asking) -> None:
    names = [f"n{number}.example" for number in range(MAX_ALT_NAMES)]

    with booted(asking.folder) as agent:
        made = agent.get_tls_key("", names, False, True, False, None, None, False)

    chain: Any = made["certificate_chain"]
    leaf = x509.load_pem_x509_certificate(chain[0].encode())
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found.get_values_for_type(x509.DNSName) == names


def test_an_app_that_names_another_kms_asks_this_one_for_nothing(asking: Asking) -> None:
    write_app(asking.folder, asking.kms.url, key_provider_id="3059")
    named = replace(asking, app=App.read(asking.folder / "app-compose.json"))

    with pytest.raises(CasemateError, match="not the one that the app-compose names"):
        booted(asking.folder).__enter__()

    assert named.released() == []


def test_the_next_address_is_tried_and_the_first_error_told(asking: Asking) -> None:
    said = json.loads((asking.folder / "sys-config.json").read_text())
    nobody = f"https://127.0.0.1:{free_port()}"
    config = asking.folder / "sys-config.json"
    config.write_text(json.dumps({**said, "kms_urls": [nobody, asking.kms.url]}))
    with booted(asking.folder) as agent:
        assert agent.vm().keys.key_provider.url == asking.kms.url

    config.write_text(json.dumps({**said, "kms_urls": [nobody, "http://x", "not an address"]}))
    with pytest.raises(Upstream, match=f"{nobody} cannot be asked"):
        booted(asking.folder).__enter__()


# The wire


def test_a_stranger_sees_what_is_public_in_every_form(kms: RunningKms) -> None:
    app_id = "ab" * 20
    as_json = requests.post(f"{kms.url}/prpc/KMS.GetMeta", json={}, verify=False, timeout=10)
    by_query = requests.get(
        f"{kms.url}/prpc/GetAppEnvEncryptPubKey?app_id={app_id}", verify=False, timeout=10
    )
    octets = {"Content-Type": "application/octet-stream"}
    body = protobuf.encode(schemas.AppId, {"app_id": app_id})
    address = f"{kms.url}/prpc/GetAppEnvEncryptPubKey"
    packed = requests.post(address, body, headers=octets, verify=False, timeout=10)
    told_json = requests.post(
        f"{address}?json", json.dumps({"app_id": app_id}), headers=octets, verify=False, timeout=10
    )
    refused = requests.post(f"{kms.url}/prpc/GetAppKey", headers=octets, verify=False, timeout=10)

    assert as_json.json()["is_dev"] is False
    assert as_json.headers["X-App-Version"].startswith("v")
    key = by_query.json()["public_key"]
    assert protobuf.decode(schemas.PublicKeyResponse, packed.content)["public_key"] == key
    assert told_json.json()["public_key"] == key
    assert refused.status_code == 400 and b"No attestation provided" in refused.content


def test_refusals_are_json_whoever_makes_them(kms: RunningKms) -> None:
    for method, path, status in (
        ("POST", "/prpc/Nope", 404),
        ("GET", "/nope", 404),
        ("DELETE", "/prpc/GetMeta", 405),
        ("GET", "/prpc/GetAppEnvEncryptPubKey?app_id=zz", 400),
        ("GET", "/prpc/GetAppEnvEncryptPubKey?app_id=abcd", 400),
        ("GET", "/" + "x" * 9000, 414),
    ):
        answer = requests.request(method, kms.url + path, verify=False, timeout=10)
        assert (answer.status_code, list(answer.json())) == (status, ["error"]), path
    short = requests.get(
        f"{kms.url}/prpc/GetAppEnvEncryptPubKey?app_id=abcd", verify=False, timeout=10
    )
    assert short.json() == {"error": "app_id must be 20 bytes"}


def test_metrics_count_what_needs_evidence(kms: RunningKms) -> None:
    def counts() -> dict[str, int]:
        text = requests.get(f"{kms.url}/metrics", verify=False, timeout=10).text
        lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
        return {name: int(value) for name, value in lines}

    before = counts()
    kms.call("GetMeta")
    for _ in range(8):
        kms.request("SignCert", api_version=7)

    after = counts()
    assert {name: after[name] - before[name] for name in after} == {
        "dstack_kms_attestation_requests_total": 8,
        "dstack_kms_attestation_failures_total": 8,
    }


def test_only_tls_1_3_is_spoken(kms: RunningKms) -> None:
    import socket

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    plain = socket.create_connection(("127.0.0.1", kms.port), timeout=10)
    with plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain)


# The operator


def test_the_image_cache_is_cleared_by_whoever_has_the_token(kms: RunningKms) -> None:
    port = kms.config.read_text().rpartition('address = "tcp:127.0.0.1:')[2].partition('"')[0]
    address = f"https://127.0.0.1:{port}/prpc/Admin.ClearImageCache"
    cached = kms.data_dir / "images/images" / ("ab" * 32)
    cached.parent.parent.mkdir(mode=0o700, exist_ok=True)
    cached.parent.mkdir(mode=0o700)
    cached.mkdir(mode=0o700)

    def clear(headers: dict[str, str], **message: str) -> int:
        answer = requests.post(address, json=message, headers=headers, verify=False, timeout=10)
        return answer.status_code

    token = "admin-token-of-the-test"
    basic = base64.b64encode(f"admin:{token}".encode()).decode()
    assert clear({}) == clear({"Authorization": "Bearer wrong"}) == 401
    assert clear({"Authorization": f"Basic {basic}x"}) == 401
    for headers in (
        {"Authorization": f"Bearer {token}"},
        {"X-Admin-Token": token},
        {"Authorization": f"Basic {basic}"},
    ):
        assert clear(headers) == 200
    assert clear({"X-Admin-Token": token}, image_hash="../../certs") == 400
    assert cached.exists()
    assert clear({"X-Admin-Token": token}, image_hash="ab" * 32) == 200
    assert not cached.exists()
    main = requests.post(f"{kms.url}/prpc/Admin.ClearImageCache", verify=False, timeout=10)
    assert main.status_code == 404


def test_the_policy_is_shown_and_changed_by_command(kms: RunningKms) -> None:
    app, device = "cd" * 20, "ef" * 32
    kms.policy("allow", "--app", "0x" + app.upper(), "--device", device)
    assert kms.policy("list")["apps"][app]["devices"] == [device]

    kms.policy("deny", "--app", app, "--device", device)
    assert kms.policy("list")["apps"][app]["devices"] == []
    kms.policy("deny", "--app", app)
    assert app not in kms.policy("list")["apps"]
    for wrong in (("deny", "--app", app), ("allow", "--app", "12"), ("allow",)):
        with pytest.raises((CasemateError, SystemExit)):
            kms.policy(*wrong)


def test_a_second_kms_in_the_folder_is_refused(kms: RunningKms) -> None:
    command = [os.sys.executable, "-m", "cli.main", "kms", "-c", str(kms.config)]  # type: ignore[attr-defined] # sys

    with pytest.raises(proc.CommandFailed, match="in use by another casemate kms"):
        proc.run(command, cwd=ROOT)


def test_nothing_of_the_kms_is_open_to_others_and_no_core_is_dumped(kms: RunningKms) -> None:
    public = {"root-ca.crt", "tmp-ca.crt", "rpc.crt", "rpc-domain", "bootstrap-info.json"}
    public |= {"tee-root-ca.pem", "tee-collateral.json"}
    for path in (kms.data_dir, *kms.data_dir.rglob("*")):
        if path.name not in public:
            assert path.stat().st_mode & 0o077 == 0, path
    assert kms.process is not None
    for process in [psutil.Process(kms.process.pid), *psutil.Process(kms.process.pid).children()]:
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)


def test_no_secret_reaches_a_log(asking: Asking) -> None:
    with booted(asking.folder) as agent:
        keys = agent.vm().keys
    folder = asking.kms.data_dir / "certs"

    log = asking.kms.log.read_text() + (asking.kms.data_dir / "audit.jsonl").read_text()

    assert "GetAppKey" in log
    root = (folder / "root-k256.key").read_bytes()
    for secret in (keys.disk_crypt_key, keys.env_crypt_key, keys.k256_key, root):
        assert secret.hex() not in log and repr(secret)[2:-1] not in log
        assert base64.b64encode(secret).decode() not in log
    for name in ("root-ca.key", "rpc.key"):
        assert (folder / name).read_text().splitlines()[1] not in log


# Onboarding


def test_a_second_kms_takes_over_the_keys_of_the_first(
    kms: RunningKms, home: Path, tmp_path: Path
) -> None:
    second = _second(home, tmp_path)
    second.start("http")
    try:
        page = requests.get(f"http://127.0.0.1:{second.port}/", timeout=10)
        info = _onboard(second, "GetAttestationInfo").json()
        # It has a TEE, and so measurements, of its own: the first must be told to allow it.
        _trust_also(kms, second)
        early = _onboard(second, "Finish")
        bad = _onboard(second, "Onboard", source_url=kms.url, domain="no domain")
        done = _onboard(second, "Onboard", source_url=kms.url, domain="second.example")
        again = _onboard(second, "Bootstrap", domain="second.example")
        _onboard(second, "Finish")
        until(lambda: second.answers(), seconds=60, what="the start with the new keys")

        assert "This KMS has no keys yet" in page.text
        assert info["tee_variant"] == "dstack-tdx"
        assert (early.status_code, bad.status_code, again.status_code) == (400, 400, 400)
        assert done.status_code == 200, done.text
        first_meta, second_meta = kms.call("GetMeta"), second.call("GetMeta")
        assert second_meta["k256_pubkey"] == first_meta["k256_pubkey"]
        assert second_meta["bootstrap_info"] is None
        app = {"app_id": "ab" * 20}
        answers = [one.call("GetAppEnvEncryptPubKey", **app) for one in (kms, second)]
        assert answers[0]["public_key"] == answers[1]["public_key"]
        leaf = x509.load_pem_x509_certificate((second.data_dir / "certs/rpc.crt").read_bytes())
        assert leaf.subject.rfc4514_string() == "CN=second.example,O=Dstack"
        assert kms.audited()[-1]["method"] == "GetKmsKey"
    finally:
        second.stop()


def _second(home: Path, tmp_path: Path) -> RunningKms:
    """A KMS without keys, on the same simulated machine as the first."""
    second = RunningKms(tmp_path / "second", domain="")
    second.trust(home / "kms/data/tee")
    (second.data_dir / "tee").mkdir(parents=True)
    (second.data_dir / "tee/seed").write_bytes((home / "kms/data/tee/seed").read_bytes())
    second.write_config()
    first = json.loads((home / "kms/data/policy.json").read_text())
    second.folder.mkdir(exist_ok=True)
    (second.data_dir / "policy.json").write_text(json.dumps(first))
    return second


def _trust_also(kms: RunningKms, second: RunningKms) -> None:
    """The first believes the machine that both run on instead of that of the apps."""
    kms.stop()
    kms.trust(second.data_dir / "tee")
    kms.start()


def _onboard(kms: RunningKms, method: str, **message: str) -> requests.Response:
    return requests.post(f"http://127.0.0.1:{kms.port}/prpc/{method}", json=message, timeout=30)
