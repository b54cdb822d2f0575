"""Evidence is verified once in a second and by all that counts; nothing that is kept outlives a change."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from attest.errors import NotGenuine
from attest.evidence import Attestation
from attest.verified import Trust, Verified, verify_evidence
from core.errors import Invalid
from kms import judge
from kms.decision import Decision
from kms.judge import Judge
from kms.schemas import AppKeyRequest
from kms.service import KmsService
from kms.settings import Settings
from tests.common import evidence
from tests.common.evidence import NOW, TdxVm
from tests.unit.kms.conftest import Deciding, Guest


@dataclass
class Rules:
    """What a judge goes by in a test, which changes it between two calls."""

    now: int = NOW
    text: str = field(default_factory=evidence.collateral)
    root: bytes | None = field(default_factory=lambda: evidence.roots().tdx)
    is_gone: bool = False

    def __call__(self) -> Trust:
        return Trust(self.now, self.collateral, self.root, evidence.roots().snp)

    def collateral(self, asked: object) -> str:
        if self.is_gone:
            raise NotGenuine("collateral: gone")
        return self.text


@pytest.fixture
def rules() -> Rules:
    return Rules()


@pytest.fixture
def judged(rules: Rules) -> Judge:
    return Judge(rules)


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[Attestation]:
    """The evidence that was really verified."""
    seen: list[Attestation] = []

    def verify(attestation: Attestation, trust: Trust) -> Verified:
        seen.append(attestation)
        return verify_evidence(attestation, trust)

    monkeypatch.setattr(judge, "verify_evidence", verify)
    return seen


def test_the_same_evidence_is_verified_once_in_a_second(
    judged: Judge, verified: list[Attestation]
) -> None:
    first = judged.verified_of_caller(TdxVm().attestation())
    # Equal and not the same object: what counts is its bytes.
    again = judged.verified_of_caller(replace(TdxVm().attestation()))

    assert first is again and first.is_valid
    assert len(verified) == 1


@pytest.mark.parametrize("make", [evidence.snp_attestation, TdxVm().attestation])
def test_each_platform_is_verified_anew_in_the_next_second(
    judged: Judge,
    verified: list[Attestation],
    rules: Rules,
    make: Callable[[], Attestation],
) -> None:
    first, same = (judged.verified_of_caller(make()) for _ in range(2))
    rules.now += 1
    later = judged.verified_of_caller(make())

    assert first is same and first is not later and first == later
    assert len(verified) == 2


def test_other_evidence_is_verified_by_itself(judged: Judge, verified: list[Attestation]) -> None:
    shown = TdxVm().attestation()
    judged.verified_of_caller(shown)
    judged.verified_of_caller(TdxVm(report_data=bytes(64)).attestation())
    judged.verified_of_caller(replace(shown, config='{"os_image_hash": "' + "5a" * 32 + '"}'))

    assert len(verified) == 3


def test_evidence_of_a_request_is_not_kept(judged: Judge, verified: list[Attestation]) -> None:
    shown = TdxVm().attestation()

    assert judged.verified(shown) == judged.verified(shown)
    assert len(verified) == 2 and not judged._kept


def test_new_collateral_is_looked_at_at_once(
    judged: Judge, verified: list[Attestation], rules: Rules
) -> None:
    shown = TdxVm().attestation()
    judged.verified_of_caller(shown)
    rules.text = evidence.platform().collateral_json(NOW - 3600)
    judged.verified_of_caller(shown)

    assert len(verified) == 2


def test_a_judge_without_collateral_believes_nobody_any_more(judged: Judge, rules: Rules) -> None:
    shown = TdxVm().attestation()
    judged.verified_of_caller(shown)
    rules.is_gone = True

    with pytest.raises(Invalid, match="^invalid quote: collateral: gone$"):
        judged.verified_of_caller(shown)


def test_another_root_is_asked_at_once(judged: Judge, rules: Rules) -> None:
    shown = TdxVm().attestation()
    judged.verified_of_caller(shown)
    rules.root = None

    with pytest.raises(Invalid, match="trusted root"):
        judged.verified_of_caller(shown)


def test_what_was_valid_is_refused_in_the_second_after_its_collateral_has_ended(
    judged: Judge, rules: Rules
) -> None:
    shown = TdxVm().attestation()
    rules.now = _last_good_second(rules, shown)
    judged.verified_of_caller(shown)
    rules.now += 1

    with pytest.raises(Invalid, match="collateral is not valid at that time"):
        judged.verified_of_caller(shown)


def _last_good_second(rules: Rules, shown: Attestation) -> int:
    def is_good(now: int) -> bool:
        return verify_evidence(shown, replace(rules(), now=now, check_image=False)).is_valid

    good, bad = NOW, NOW + 100 * 365 * 86400
    assert is_good(good) and not is_good(bad)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if is_good(middle) else (good, middle)
    return good


def test_a_refusal_is_not_kept(judged: Judge, verified: list[Attestation], rules: Rules) -> None:
    shown = TdxVm().attestation()
    good, rules.text = rules.text, "{}"
    with pytest.raises(Invalid, match="^invalid quote: collateral"):
        judged.verified_of_caller(shown)
    rules.text = good

    assert judged.verified_of_caller(shown).is_valid
    assert len(verified) == 2


def test_no_more_than_so_many_outcomes_are_kept_and_the_newest_stay(
    judged: Judge, verified: list[Attestation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "MAX_KEPT", 2)
    first, second, third = (
        TdxVm(report_data=bytes([number]) * 64).attestation() for number in range(3)
    )
    for shown in (first, second, third, third, second, first):
        judged.verified_of_caller(shown)

    assert verified == [first, second, third, first]
    assert len(judged._kept) == 2


def test_a_certificate_is_read_once_and_another_by_itself(kms: KmsService, guest: Guest) -> None:
    first, second = guest.certificate(kms), guest.certificate(kms)

    evidence_of_first = judge.shown(first)

    assert evidence_of_first is not None
    assert judge.shown(bytes(bytearray(first))) is evidence_of_first
    assert judge.shown(second) not in (None, evidence_of_first)


def test_every_release_is_decided_and_recorded_though_its_evidence_was_verified_before(
    kms: KmsService,
    guest: Guest,
    deciding: Deciding,
    settings: Settings,
    verified: list[Attestation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown, now = guest.certificate(kms), time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    for _ in range(3):
        kms.get_app_key(kms.caller(shown), AppKeyRequest(1, ""))
    deciding.answer = Decision(False, "no more")
    with pytest.raises(Invalid, match="no more"):
        kms.get_app_key(kms.caller(shown), AppKeyRequest(1, ""))

    assert len(verified) == 1
    assert len(deciding.asked) == len(deciding.asked_of_kms) == 4
    assert len(settings.audit_log.read_text().splitlines()) == 3
