"""What evidence proves, in words: each sentence on the right side, and nothing proven that is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attest import collateral
from attest.artifacts import Registry
from core.errors import Invalid
from secretvm import proof
from secretvm.builds import Builds
from secretvm.gateway import Gateways
from secretvm.live import Live
from secretvm.proof import REGISTERS, Asked
from secretvm.quotes import Parsed, Quotes
from secretvm.verification import Verification
from tests.common import evidence
from tests.common.evidence import NOW, TdxVm, platform, processor, snp_attestation
from tests.unit.attest.test_artifacts import COMPOSE
from verify.service import Verifier


class Genuine(Quotes):
    """Finds the simulated platform's quotes as genuine as those of a vendor's, or of another root."""

    root = "intel"
    changes: dict[str, Any] = {}  # noqa: RUF012 (set by each test)

    def parse(self, raw: bytes, now: int, given: str = "", at: int | None = None) -> Parsed:
        """As if the root were that one."""
        found = super().parse(raw, now, evidence.collateral())
        return replace(found, **{"root": self.root, **self.changes})  # type: ignore[arg-type]


@pytest.fixture
def root_file(tmp_path: Path) -> Path:
    path = tmp_path / "root.pem"
    path.write_text(platform().root_ca_pem + processor().root_ca_pem)
    return path


@pytest.fixture
def quotes(root_file: Path) -> Genuine:
    return Genuine(Verifier(root_file, collateral.nowhere))


@pytest.fixture
def verification(quotes: Genuine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Verification:
    """A verifier that knows no build."""
    monkeypatch.setattr(Verification, "now", staticmethod(lambda: NOW))
    builds = Builds(Registry, tmp_path, {})
    return Verification(builds, quotes, Live.__new__(Live), Gateways.__new__(Gateways))


QUOTE = TdxVm().attestation().platform.quote  # type: ignore[union-attr]
REPORT = snp_attestation().platform.report  # type: ignore[union-attr]
TYPED = {name: "00" * 48 for name in REGISTERS}


def has(sentences: tuple[str, ...], words: str) -> bool:
    return any(words in each for each in sentences)


def test_a_quote_of_a_vendors_processor_proves_that_and_not_the_app(
    verification: Verification,
) -> None:
    found = proof.examine(verification, Asked(quote=QUOTE))

    assert found.is_proven
    assert has(found.proves, "A processor of Intel made this TDX quote")
    assert has(found.proves, "keeps the VM's memory from its host")
    assert has(found.proves, "up to date")
    assert has(found.lacks, "Which app it runs")
    assert has(found.lacks, "Which image it booted")
    assert has(found.lacks, "That the VM runs now")
    assert found.facts["MRTD"] in QUOTE.hex()


@pytest.mark.parametrize(
    ("root", "words"), [("simulated", "software made it"), ("custom", "not to the vendor's")]
)
def test_a_root_of_the_operators_proves_nothing_of_a_processor(
    verification: Verification, quotes: Genuine, root: str, words: str
) -> None:
    quotes.root = root

    found = proof.examine(verification, Asked(quote=QUOTE))

    assert not found.is_proven
    assert has(found.lacks, words)
    assert found.proves == ()


def test_what_fits_under_a_root_of_the_operators_is_not_proven_either(
    verification: Verification, quotes: Genuine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = proof.Finding("the VM measured this compose file")
    monkeypatch.setattr(Builds, "check_tdx", lambda *_: fits)
    asked = Asked(quote=QUOTE, compose=COMPOSE)
    assert has(proof.examine(verification, asked).proves, "measured exactly this compose file")

    quotes.root = "simulated"

    found = proof.examine(verification, asked)
    assert found.proves == ()
    assert has(found.lacks, "fits these registers; that says little")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"is_debug": True}, "its host can read all of its memory"),
        ({"result": "40962", "message": "TCB status OutOfDate", "advisory_ids": ("INTEL-SA-1",)},
         "TCB status OutOfDate (INTEL-SA-1)"),
        ({"tcb_status": None, "result": "40964", "message": "bad signature", "root": None},
         "That a processor made this TDX quote: bad signature"),
    ],
    ids=["debug", "old firmware", "not genuine"],
)  # fmt: skip
def test_what_is_wrong_is_said_and_nothing_is_proven(
    verification: Verification, quotes: Genuine, changes: dict[str, Any], words: str
) -> None:
    quotes.changes = changes

    found = proof.examine(verification, Asked(quote=QUOTE))

    assert not found.is_proven
    assert has(found.lacks, words)


def test_a_compose_file_that_the_build_is_not_known_of_is_not_proven(
    verification: Verification,
) -> None:
    found = proof.examine(verification, Asked(quote=QUOTE, compose=b"services: {}"))

    assert not found.is_proven
    assert has(found.lacks, "That it runs this compose file: no known build")


def test_registers_without_a_quote_prove_nothing_even_where_they_fit(
    verification: Verification, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Builds, "check_tdx", lambda *_: proof.Finding("the VM measured this compose file")
    )

    found = proof.examine(verification, Asked(compose=COMPOSE, registers=TYPED))

    assert not found.is_proven and found.proves == ()
    assert has(found.lacks, "registers are only numbers")
    assert has(found.lacks, "fits these registers; that says little")


def test_a_report_is_told_from_a_quote_by_its_size(verification: Verification) -> None:
    found = proof.examine(verification, Asked(quote=REPORT))

    assert found.checks["report_parsed"] is True
    assert found.checks["cert_chain_valid"] is None
    assert "Measurement" in found.facts
    assert has(found.lacks, "That a processor made this SEV-SNP report")


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (Asked(), "quote"),
        (Asked(compose=b"x"), "quote"),
        (Asked(quote=b"\4\0\2\0" + bytes(700)), "quote"),
        (Asked(registers=TYPED), "compose"),
        (Asked(compose=b"x", registers={**TYPED, "RTMR3": ""}), "RTMR3"),
        (Asked(compose=b"x", registers={**TYPED, "MRTD": "abcd"}), "MRTD"),
        (Asked(compose=b"x", registers={**TYPED, "MRTD": "?"}), "MRTD"),
        (Asked(compose=b"x", registers=TYPED, app_id="ab"), "app_id"),
        (Asked(compose=b"x", registers=TYPED, event_log="[]"), "app_compose"),
        (Asked(quote=QUOTE, compose=b"x" * 2**24), "compose"),
    ],
)
def test_what_cannot_be_judged_names_its_field(
    verification: Verification, asked: Asked, field: str
) -> None:
    with pytest.raises(Invalid) as refusal:
        proof.examine(verification, asked)

    assert list(refusal.value.fields) == [field]


def test_a_quote_comes_as_text_or_as_its_file() -> None:
    assert proof.quote_of(QUOTE.hex(), b"") == QUOTE
    assert proof.quote_of("", QUOTE) == QUOTE
    assert proof.quote_of("ignored", b"0x" + QUOTE.hex().encode() + b"\n") == QUOTE
    assert proof.quote_of(" ", b"") == b""
    for text, data in (("zz", b""), ("", b"\0" * 2**20), ("00" * 2**19, b"")):
        with pytest.raises(Invalid):
            proof.quote_of(text, data)
