"""Sources of collateral, against services on this machine that answer as the real ones do."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote as escaped

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attest import collateral, snp
from attest.collateral import Cached, Fetched
from attest.errors import Malformed, NotGenuine
from attest.evidence import SnpEvidence, TdxEvidence
from attest.snp import Report
from attest.verified import verify_evidence
from attest.verify import Claim, read_claim
from tests.common import evidence
from tests.common.evidence import TdxVm, processor, snp_attestation, trust

Answer = tuple[int, bytes, dict[str, str]]


class Service(ThreadingHTTPServer):
    """Answers paths by the first part of a table's keys that they contain; remembers what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.hold = threading.Event()
        self.hold.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.hold.wait(30)
        matching = (answer for part, answer in self.server.answers.items() if part in self.path)
        status, body, headers = next(matching, (404, b"", {}))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    running = Service()
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.hold.set()
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def pccs(service: Service) -> Service:
    """A PCCS that has the simulated platform's collateral."""
    given = json.loads(evidence.collateral())

    def signed(name: str, part: str) -> bytes:
        return f'{{"{name}":{given[part]},"signature":"{given[part + "_signature"]}"}}'.encode()

    def chain(header: str, part: str) -> dict[str, str]:
        return {header: escaped(given[f"{part}_issuer_chain"])}

    service.answers = {
        "/pckcrl": (
            200,
            bytes.fromhex(given["pck_crl"]),
            chain("SGX-PCK-CRL-Issuer-Chain", "pck_crl"),
        ),
        "/rootcacrl": (200, given["root_ca_crl"].encode(), {}),
        "/tcb": (200, signed("tcbInfo", "tcb_info"), chain("TCB-Info-Issuer-Chain", "tcb_info")),
        "/identity": (
            200,
            signed("enclaveIdentity", "qe_identity"),
            chain("SGX-Enclave-Identity-Issuer-Chain", "qe_identity"),
        ),
    }
    return service


@pytest.fixture
def claim() -> Claim:
    platform = TdxVm().attestation().platform
    assert isinstance(platform, TdxEvidence)
    return read_claim(platform.quote, evidence.roots().tdx)


@pytest.fixture
def report() -> Report:
    platform = snp_attestation().platform
    assert isinstance(platform, SnpEvidence)
    return snp.parse(platform.report)


def test_what_was_given_is_what_is_used(claim: Claim) -> None:
    assert collateral.given("text")(claim) == "text"


def test_a_file_is_read_at_every_question(claim: Claim, tmp_path: Path) -> None:
    path = tmp_path / "collateral.json"
    source = collateral.file(path)
    path.write_text("one")
    assert source(claim) == "one"
    path.write_text("two")
    assert source(claim) == "two"


def test_a_file_that_is_not_there_or_no_text_is_a_reason(claim: Claim, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff")

    for name in ("none", "bytes"):
        with pytest.raises(NotGenuine, match="cannot be read") as refused:
            collateral.file(tmp_path / name)(claim)
        assert str(tmp_path) not in str(refused.value)


def test_a_verifier_without_a_source_says_so(claim: Claim, report: Report) -> None:
    source = collateral.service()

    for asked in (claim, report):
        with pytest.raises(NotGenuine, match="no source of it configured"):
            source(asked)


def test_evidence_is_verified_with_collateral_from_a_pccs(pccs: Service) -> None:
    found = verify_evidence(TdxVm().attestation(), trust(collateral=collateral.service(pccs.url)))

    assert found.reason is None
    assert any("fmspc=53494D554C41" in path for path in pccs.asked)
    assert any("ca=platform" in path for path in pccs.asked)


def test_a_pccs_is_asked_once_for_each_platform(pccs: Service, claim: Claim) -> None:
    source = collateral.service(pccs.url)
    source(claim)
    before = len(pccs.asked)
    source(claim)

    assert len(pccs.asked) == before


def test_a_pccs_that_refuses_is_a_reason_without_its_address(
    service: Service, claim: Claim
) -> None:
    source = collateral.service(service.url)

    with pytest.raises(NotGenuine, match="the PCCS does not give it") as caught:
        source(claim)
    assert str(service.server_port) not in caught.value.message


def test_a_pccs_that_does_not_answer_is_a_reason(
    pccs: Service, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collateral, "TIMEOUT_S", 0.1)
    pccs.hold.clear()

    with pytest.raises(NotGenuine, match="no answer in time"):
        collateral.service(pccs.url)(claim)


def test_answers_are_kept_until_they_end(claim: Claim) -> None:
    now, asked = 100.0, []

    def fetch(question: Claim | Report) -> Fetched:
        asked.append(question)
        return Fetched(f"answer {len(asked)}", now + 10)

    source = Cached(lambda question: "key", fetch, lambda: now)

    assert (source(claim), source(claim)) == ("answer 1", "answer 1")
    now += 10
    assert source(claim) == "answer 2"


def test_the_oldest_answers_make_room(claim: Claim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collateral, "MAX_CACHED", 2)
    keys, asked = iter("abcac"), []

    def fetch(question: Claim | Report) -> Fetched:
        asked.append(question)
        return Fetched("", 10)

    source = Cached(lambda question: next(keys), fetch, lambda: 0)
    for _ in range(5):
        source(claim)

    assert len(asked) == 4  # a, b, c, and a again, which c had displaced; c was kept


def test_a_slow_answer_holds_up_nobody_who_asks_for_another(claim: Claim) -> None:
    is_out, may_answer = threading.Event(), threading.Event()
    keys = iter(("slow", "quick"))

    def fetch(question: Claim | Report) -> Fetched:
        if not is_out.is_set():
            is_out.set()
            assert may_answer.wait(30)
            return Fetched("late", 10)
        return Fetched("early", 10)

    source = Cached(lambda question: next(keys), fetch, lambda: 0)
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(source, claim)
        assert is_out.wait(30)
        quick = pool.submit(source, claim)
        try:
            assert quick.result(timeout=20) == "early"
        finally:
            may_answer.set()
        assert slow.result(timeout=30) == "late"


def test_the_same_question_goes_out_once_at_a_time(claim: Claim) -> None:
    asked: list[Claim | Report] = []
    may_answer = threading.Event()

    def fetch(question: Claim | Report) -> Fetched:
        asked.append(question)
        assert may_answer.wait(30)
        return Fetched("answer", 10)

    source = Cached(lambda question: "key", fetch, lambda: 0)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(source, claim) for _ in range(4)]
        may_answer.set()
        assert {each.result(timeout=30) for each in answers} == {"answer"}

    assert len(asked) == 1


def test_collateral_ends_with_the_first_of_its_parts() -> None:
    given = json.loads(evidence.collateral())
    info = json.loads(given["tcb_info"])
    early = {**given, "tcb_info": json.dumps({**info, "nextUpdate": "2027-01-01T00:00:00Z"})}

    assert collateral.next_update(evidence.collateral()) == evidence.NOW + 7 * 24 * 3600
    assert collateral.next_update(json.dumps(early)) == 1798761600


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tcb_info":"{}","qe_identity":"{}"}'])
def test_collateral_that_does_not_say_when_it_ends_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match="when it ends"):
        collateral.next_update(text)


def kds(service: Service) -> Service:
    own = processor()
    chain = b"".join(cert.public_bytes(Encoding.PEM) for cert in (own.ask, own.ark))
    service.answers = {
        "/cert_chain": (200, chain, {}),
        "/vcek/": (200, own.vcek.public_bytes(Encoding.DER), {}),
    }
    return service


def test_evidence_is_verified_with_certificates_from_a_kds(service: Service) -> None:
    source = collateral.service(kds_url=kds(service).url + "/")
    attestation = snp_attestation(chain=False)

    for _ in range(2):
        assert verify_evidence(attestation, trust(collateral=source)).reason is None
    chip = processor().chip_id.hex()
    assert service.asked == [
        f"/vcek/v1/Milan/{chip}?blSPL=4&teeSPL=0&snpSPL=24&ucodeSPL=213",
        "/vcek/v1/Milan/cert_chain",
    ]


def other(report: Report, **changes: Any) -> Report:
    from dataclasses import replace

    return replace(report, **changes)


def test_each_product_has_its_own_path(service: Service, report: Report) -> None:
    source = collateral.service(kds_url=kds(service).url)
    source(other(report, model=0x11, chip_id=bytes(64)))
    source(other(report, family=0x1A, reported_tcb=bytes(range(8)), chip_id=bytes(64)))

    assert service.asked[0].startswith("/vcek/v1/Genoa/")
    assert service.asked[2] == (
        f"/vcek/v1/Turin/{'00' * 8}?fmcSPL=0&blSPL=1&teeSPL=2&snpSPL=3&ucodeSPL=7"
    )


@pytest.mark.parametrize("changes", [{"version": 2}, {"family": 0x17}])
def test_a_report_that_names_no_known_processor_is_a_reason(
    report: Report, changes: dict[str, int]
) -> None:
    with pytest.raises(NotGenuine, match="which processor"):
        collateral.service(kds_url="http://127.0.0.1:1")(other(report, **changes))


def test_a_kds_that_refuses_or_is_not_there_is_a_reason(service: Service, report: Report) -> None:
    for url, why in (
        (service.url, "status 404"),
        ("http://127.0.0.1:1", "the KDS cannot be reached"),
    ):
        with pytest.raises(NotGenuine, match=why):
            collateral.service(kds_url=url)(report)


def test_a_kds_that_answers_with_nonsense_is_a_reason(service: Service, report: Report) -> None:
    service.answers = {"/vcek/": (200, b"nonsense", {})}

    with pytest.raises(Malformed, match="cannot be read"):
        collateral.service(kds_url=service.url)(report)


def test_a_processors_certificates_outlive_the_process(report: Report, tmp_path: Path) -> None:
    asked = []

    def fetch(question: Claim | Report) -> Fetched:
        asked.append(question)
        return Fetched("chain", 200.0)

    for moment in (100.0, 199.0, 200.0):
        kept = collateral.OnDisk(tmp_path / "kept", fetch, lambda moment=moment: moment)  # type: ignore[misc]
        assert kept(report).text == "chain"
    # The third came when the first answer had ended.
    assert len(asked) == 2
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700


def test_a_refusal_is_kept_for_some_minutes(report: Report, tmp_path: Path) -> None:
    now, asked = 100.0, []

    def fetch(question: Claim | Report) -> Fetched:
        asked.append(question)
        raise NotGenuine("collateral: the KDS does not give it")

    kept = collateral.OnDisk(tmp_path, fetch, lambda: now)
    for _ in range(3):
        with pytest.raises(NotGenuine, match="the KDS does not give it"):
            kept(report)
    assert len(asked) == 1
    now += collateral.REFUSAL_LIFETIME_S
    with pytest.raises(NotGenuine):
        kept(report)
    assert len(asked) == 2


def test_what_somebody_wrote_into_the_folder_is_asked_anew(report: Report, tmp_path: Path) -> None:
    kept = collateral.OnDisk(tmp_path, lambda _: Fetched("chain", 200.0), lambda: 100.0)
    kept(report)
    for text in ("", "[]", '{"text": 5}', "x"):
        next(tmp_path.iterdir()).write_text(text)
        assert kept(report).text == "chain"


def test_strangers_do_not_fill_the_disk(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collateral, "MAX_KEPT", 3)
    kept = collateral.OnDisk(tmp_path, lambda _: Fetched("chain", 200.0), lambda: 100.0)
    for number in range(6):
        kept(dataclasses.replace(report, chip_id=bytes([number]) * 64))

    assert len(list(tmp_path.iterdir())) == 3


def test_a_file_that_somebody_else_takes_away_meanwhile_is_no_fault(
    report: Report, tmp_path: Path
) -> None:
    (tmp_path / "gone").symlink_to("nowhere")

    assert collateral.OnDisk(tmp_path, lambda _: Fetched("chain", 9), lambda: 1)(report).text


def test_the_list_of_revoked_keys_comes_from_the_kds_once(service: Service, report: Report) -> None:
    service.answers = {"/vcek/v1/Milan/crl": (200, evidence.revocations(), {})}
    source = collateral.revocations(service.url)

    assert source(report) == source(report)
    assert source(report).startswith("-----BEGIN X509 CRL-----")
    assert service.asked == ["/vcek/v1/Milan/crl"]


def test_what_is_no_list_of_revoked_keys_is_a_reason(service: Service, report: Report) -> None:
    service.answers = {"/crl": (200, b"none", {})}
    with pytest.raises(Malformed):
        collateral.revocations(service.url)(report)
    service.answers = {}
    with pytest.raises(NotGenuine, match="status 404"):
        collateral.revocations(service.url)(report)
    with pytest.raises(NotGenuine, match="no source"):
        collateral.revocations()(report)
