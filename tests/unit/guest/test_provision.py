"""What happens around the asking; the asking itself is in tests/system/test_kms*.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import Invalid, Upstream
from guest import provision
from guest.service import Agent

_HEAD = "Iface Destination Gateway\n"


def route(root: Path, lines: str) -> None:
    (root / "proc/net").mkdir(parents=True, exist_ok=True)
    (root / "proc/net/route").write_text(_HEAD + lines)


def test_a_way_out_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    route(tmp_path, "eth0 000200C0 00000000\n")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            route(tmp_path, "eth0 00000000 010200C0\n")

    monkeypatch.setattr(provision.time, "sleep", pause)

    provision.wait_for_network(tmp_path)

    assert len(pauses) == 3 and capsys.readouterr().out == ""


def test_a_machine_without_a_network_asks_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    route(tmp_path, "")
    monkeypatch.setattr(provision, "NETWORK_S", 0.05)

    provision.wait_for_network(tmp_path)

    assert "no network yet" in capsys.readouterr().out


def test_an_app_without_an_address_of_a_kms_is_told(agent: Agent) -> None:
    with pytest.raises(Invalid, match="the host names none"):
        provision.from_kms([], agent.vm().evidence, "")


def test_a_root_that_is_no_certificate_is_refused() -> None:
    with pytest.raises(Upstream, match="root certificate of the KMS cannot be read"):
        provision._identity("no certificate")


@pytest.mark.parametrize("chain", [None, [], "PEM", [5]])
def test_an_answer_without_certificates_is_refused(chain: object) -> None:
    with pytest.raises(Upstream, match="no certificate chain"):
        provision._chain({"certificate_chain": chain})
