"""Client certificates that a KMS must refuse, each for its own reason; and servers that a guest must refuse."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from attest import envelope, ratls
from attest_sim.tdx import SimulatedPlatform
from core import certs
from core.certs import Issuer, Leaf
from core.errors import CasemateError, Upstream
from core.kdf import pkcs8_pem
from core.kms_client import Introduction, Kms
from guest import provision
from tests.common.kms import RunningKms
from tests.unit.kms.conftest import EVENTS, Guest

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")

NOW = int(datetime.now(UTC).timestamp())
DAY = 86400


@dataclass(frozen=True)
class Bench:
    """A running KMS, what it told a stranger, and a guest that it would serve."""

    kms: RunningKms
    met: Introduction
    guest: Guest

    @property
    def temp_ca(self) -> Issuer:
        key = load_pem_private_key(self.met.temp_ca_key.encode(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return Issuer(key, x509.load_pem_x509_certificate(self.met.temp_ca_cert.encode()))

    def leaf(self, issuer: Issuer | None = None, **changes: Any) -> tuple[str, str]:
        """A certificate for a fresh key, with good evidence unless told otherwise, and the key."""
        key = ec.generate_private_key(ec.SECP256R1())
        given = {"extensions": [self.guest.extension(key.public_key())], **changes}
        signer = issuer or self.temp_ca
        return signer.issue(key.public_key(), Leaf("x", **given)), pkcs8_pem(key)

    def ask(self, client: tuple[str, str] | None) -> str:
        """What becomes of GetAppKey with a client certificate: the keys, or why not."""
        try:
            Kms(self.kms.url, self.met.ca_cert).call("GetAppKey", {"api_version": 1}, client)
        except CasemateError as error:
            return error.message
        return "keys"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    platform = SimulatedPlatform.from_seed(bytes(range(32)))
    folder = tmp_path_factory.mktemp("kms")
    (folder / "tee-root-ca.pem").write_text(platform.root_ca_pem)
    (folder / "tee-collateral.json").write_text(platform.collateral_json(NOW))
    running = RunningKms(folder, tables='[core.auth_api]\ntype = "dev"\n')
    running.start()
    yield Bench(running, Kms(running.url).introduction(), Guest(platform, EVENTS))
    running.stop()


Case = Callable[[Bench], tuple[str, str] | None]


def below(bench: Bench, issuer: Issuer | None, *, path_length: int = 0) -> tuple[Issuer, str]:
    """An authority of somebody's own, and its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    text = certs.authority(key, certs.name("own"), path_length=path_length, issuer=issuer)
    return Issuer(key, x509.load_pem_x509_certificate(text.encode())), text


def self_signed(bench: Bench) -> tuple[str, str]:
    return bench.leaf(below(bench, None)[0])


def under_another_ca_of_that_name(bench: Bench) -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = certs.name("Dstack Client Temp CA", "Dstack")
    text = certs.authority(key, name, path_length=0)
    return bench.leaf(Issuer(key, x509.load_pem_x509_certificate(text.encode())))


def with_a_forged_signature(bench: Bench) -> tuple[str, str]:
    other = ec.generate_private_key(ec.SECP256R1())
    return bench.leaf(Issuer(other, bench.temp_ca.certificate))


def below_an_authority_too_many(bench: Bench) -> tuple[str, str]:
    issuer, text = below(bench, bench.temp_ca)
    leaf, key = bench.leaf(issuer)
    return leaf + text, key


def signed_by_a_leaf(bench: Bench) -> tuple[str, str]:
    text, key = bench.leaf()
    private = load_pem_private_key(key.encode(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    leaf, own = bench.leaf(Issuer(private, x509.load_pem_x509_certificate(text.encode())))
    return leaf + text, own


def expired(bench: Bench) -> tuple[str, str]:
    return bench.leaf(not_after=NOW - DAY)


def not_valid_yet(bench: Bench) -> tuple[str, str]:
    return bench.leaf(not_before=NOW + DAY)


def for_servers_only(bench: Bench) -> tuple[str, str]:
    return bench.leaf(server_auth=True)


def without_evidence(bench: Bench) -> tuple[str, str]:
    return bench.leaf(extensions=[])


def with_evidence_of_another_key(bench: Bench) -> tuple[str, str]:
    other = ec.generate_private_key(ec.SECP256R1())
    return bench.leaf(extensions=[bench.guest.extension(other.public_key())])


def raw_evidence(change: Callable[[bytes], bytes]) -> Case:
    def case(bench: Bench) -> tuple[str, str]:
        raw = change(envelope.encode(bench.guest.attestation(bytes(64))))
        return bench.leaf(extensions=[ratls._extension(ratls.ATTESTATION, raw)])

    return case


def of_guest(change: Callable[[Guest], Guest]) -> Case:
    def case(bench: Bench) -> tuple[str, str]:
        return replace(bench, guest=change(bench.guest)).leaf()

    return case


def events(*given: tuple[str, bytes]) -> Case:
    return of_guest(lambda guest: replace(guest, events=given))


def of_another_machine(guest: Guest) -> Guest:
    return replace(guest, platform=SimulatedPlatform.from_seed(bytes(32)))


class WithQuoteOf(Guest):
    """A guest that shows the quote of another one with its own log, or a quote that was touched."""

    def attestation(self, report_data: bytes) -> Any:
        mine = super().attestation(report_data)
        return replace(mine, platform=replace(mine.platform, quote=self.other(report_data)))

    def other(self, report_data: bytes) -> bytes:
        events = (*EVENTS[:2], ("compose-hash", hashlib.sha256(b"other").digest()), *EVENTS[3:])
        platform: Any = Guest(self.platform, events).attestation(report_data).platform
        quote: bytes = platform.quote
        return quote


class WithTouchedQuote(WithQuoteOf):
    """One bit of the signed part is another."""

    def other(self, report_data: bytes) -> bytes:
        platform: Any = Guest(self.platform, self.events).attestation(report_data).platform
        quote = bytearray(platform.quote)
        quote[200] ^= 1
        return bytes(quote)


def with_broken_app_info(bench: Bench) -> tuple[str, str]:
    return bench.leaf(extensions=[ratls._extension(ratls.APP_INFO, b"\xc1")])


def with_a_log_that_inflates(bench: Bench) -> tuple[str, str]:
    import gzip

    bomb = ratls.GZIP_PREFIX + gzip.compress(bytes(10_000_000))
    return bench.leaf(extensions=[ratls._extension(ratls.EVENT_LOG, bomb)])


BAD: list[tuple[str, Case, str]] = [
    ("none at all", lambda bench: None, "No attestation provided"),
    ("self-signed", self_signed, "unknown ca"),
    (
        "of another CA of that name",
        under_another_ca_of_that_name,
        "unknown ca",
    ),
    ("with a forged signature", with_a_forged_signature, "decrypt error"),
    ("an authority too many", below_an_authority_too_many, "unknown ca"),
    ("signed by a leaf", signed_by_a_leaf, "unknown ca"),
    ("expired", expired, "certificate expired"),
    ("not valid yet", not_valid_yet, "bad certificate"),
    ("for servers only", for_servers_only, "unsupported certificate"),
    ("without evidence", without_evidence, "No attestation provided"),
    ("evidence of another key", with_evidence_of_another_key, "not made for the key"),
    ("evidence cut short", raw_evidence(lambda raw: raw[:500]), "cut short"),
    ("evidence with a tail", raw_evidence(lambda raw: raw + b"x"), "followed by other bytes"),
    (
        "evidence of no form",
        raw_evidence(lambda raw: b"\x07" + raw),
        "neither SCALE's nor msgpack's",
    ),
    ("empty evidence", raw_evidence(lambda raw: b""), "neither SCALE's nor msgpack's"),
    ("of another machine", of_guest(of_another_machine), "does not end in the trusted root"),
    (
        "quote of another log",
        of_guest(lambda guest: WithQuoteOf(guest.platform, guest.events)),
        "RTMR3 of the quote is not what the event log adds up to",
    ),
    (
        "quote with a flipped bit",
        of_guest(lambda guest: WithTouchedQuote(guest.platform, guest.events)),
        "not genuine",
    ),
    ("no app id", events(*EVENTS[2:]), "has no app-id"),
    ("app id of 19 bytes", events(("app-id", bytes(19)), *EVENTS[2:]), "19 bytes instead of 20"),
    ("no compose hash", events(*EVENTS[:2], *EVENTS[3:]), "has no compose-hash"),
    (
        "app id after the boot",
        events(("system-ready", b""), *EVENTS),
        "has no app-id before system-ready",
    ),
    ("broken app info", with_broken_app_info, "app info is not valid msgpack"),
    ("a log that inflates", with_a_log_that_inflates, "larger than 16 KiB"),
]


def test_the_table_has_twenty_bad_ones() -> None:
    assert len(BAD) >= 20


def test_the_good_one_gets_keys(bench: Bench) -> None:
    assert bench.ask(bench.leaf()) == "keys"
    assert bench.ask(bench.leaf(client_auth=True, not_after=NOW + DAY)) == "keys"


@pytest.mark.parametrize(("case", "reason"), [pytest.param(c, r, id=n) for n, c, r in BAD])
def test_a_bad_certificate_is_refused_for_its_own_reason(
    bench: Bench, case: Case, reason: str
) -> None:
    said = bench.ask(case(bench))

    assert re.search(reason, said, re.IGNORECASE), said
    assert len(bench.kms.audited()) <= 2


# Servers


@dataclass(frozen=True)
class Impostor:
    """A server that a guest may be led to instead of a KMS."""

    url: str
    asked: list[str]


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[Callable[..., Impostor]]:
    """Starts servers with a given certificate chain and key and given answers."""
    started: list[http.server.ThreadingHTTPServer] = []

    def start(chain: str, key: str, answers: dict[str, Any]) -> Impostor:
        asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                method = self.path.rpartition("/")[2].partition("?")[0]
                asked.append(method)
                body = json.dumps(answers[method]).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (tmp_path / "server.pem").write_text(chain + key)
        context.load_cert_chain(tmp_path / "server.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        started.append(server)
        return Impostor(f"https://127.0.0.1:{server.server_port}", asked)

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


class Proof:
    """Stands in for a guest's evidence where nothing may be asked for it."""

    def __init__(self, guest: Guest) -> None:
        self.ra_tls_extension = guest.extension


def test_a_server_that_only_repeats_the_words_of_a_kms_gets_no_evidence(
    bench: Bench, impostor: Callable[..., Impostor]
) -> None:
    # It knows what every stranger knows, the real root certificate too, but not the key under it.
    own, _ = below(bench, None)
    said = {
        "ca_cert": bench.met.ca_cert,
        "temp_ca_cert": bench.met.temp_ca_cert,
        "temp_ca_key": bench.met.temp_ca_key,
    }
    server = impostor(*bench.leaf(own), {"GetTempCaCert": said})

    with pytest.raises(Upstream, match="CERTIFICATE_VERIFY_FAILED"):
        provision.from_kms([server.url], Proof(bench.guest), "")  # type: ignore[arg-type] # as much as is used

    assert server.asked == ["GetTempCaCert"]


def test_an_app_of_the_same_kms_is_not_taken_for_it(
    bench: Bench, impostor: Callable[..., Impostor]
) -> None:
    # Its certificate is under the right root, which also certifies every app.
    root, _ = below(bench, None, path_length=1)
    chain, key = bench.leaf(root, extensions=[ratls.usage_extension("app:custom")])
    said = {
        "ca_cert": certs.pem(root.certificate),
        "temp_ca_cert": bench.met.temp_ca_cert,
        "temp_ca_key": bench.met.temp_ca_key,
    }
    server = impostor(chain, key, {"GetTempCaCert": said})

    with pytest.raises(Upstream, match="the server's certificate is not that of a KMS"):
        provision.from_kms([server.url], Proof(bench.guest), "")  # type: ignore[arg-type] # as above

    assert server.asked == ["GetTempCaCert"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ca_cert": "another"}, "under another root"),
        ({"k256_key": "00"}, "no k256_key of 32 bytes"),
        ({"k256_key": "zz" * 32}, "no k256_key"),
        ({"k256_key": 5}, "no k256_key"),
        ({"disk_crypt_key": ""}, "no disk_crypt_key"),
        ({"env_crypt_key": None}, "no env_crypt_key"),
        ({"k256_signature": "00" * 64}, "no k256_signature of 65 bytes"),
        ({"os_image_hash": "00"}, "no os_image_hash"),
    ],
)
def test_an_answer_with_half_a_key_is_refused(change: dict[str, Any], reason: str) -> None:
    from guest.keys import KeyProvider

    whole = {
        "ca_cert": "root",
        "disk_crypt_key": "11" * 32,
        "env_crypt_key": "22" * 32,
        "k256_key": "33" * 32,
        "k256_signature": "44" * 65,
        "os_image_hash": "",
    }
    assert provision.read_answer(whole, "root", KeyProvider("Kms")).os_image_hash == b""

    with pytest.raises(Upstream, match=reason):
        provision.read_answer({**whole, **change}, "root", KeyProvider("Kms"))
