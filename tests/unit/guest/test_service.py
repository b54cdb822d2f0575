from __future__ import annotations

import threading
from pathlib import Path

import pytest

from core.errors import Unavailable
from guest import service
from guest.service import Agent
from tests.common.waiting import until


def test_the_first_info_has_the_certificate(agent: Agent) -> None:
    assert "BEGIN CERTIFICATE" in str(agent.info()["app_cert"])


def test_the_certificate_is_made_as_soon_as_the_boot_has_keys_and_before_anybody_asks(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = threading.Event()
    issue = Agent._issue_app_cert

    def issued(self: Agent) -> str:
        made.set()
        return issue(self)

    monkeypatch.setattr(Agent, "_issue_app_cert", issued)
    monkeypatch.setattr(service, "LOOK_FOR_KEYS_S", 0.01)
    keys: Path = agent.settings.app_keys
    away = keys.rename(keys.with_name("away"))

    agent.watch_boot()
    with pytest.raises(Unavailable, match="still booting"):
        agent.vm()
    assert not made.is_set()
    away.rename(keys)

    assert made.wait(20)


def test_a_certificate_that_cannot_be_had_holds_info_up_once_and_comes_later(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    kms_is_there = threading.Event()

    def issued(self: Agent) -> str:
        if not kms_is_there.is_set():
            raise Unavailable("the KMS is away")
        return "PEM"

    monkeypatch.setattr(Agent, "_issue_app_cert", issued)
    monkeypatch.setattr(service, "APP_CERT_AGAIN_S", 0.01)

    assert agent.info()["app_cert"] == ""
    kms_is_there.set()
    until(lambda: agent.info()["app_cert"] == "PEM", seconds=20, what="the certificate")


def test_a_boot_that_failed_is_not_waited_for(agent: Agent, folder: Path) -> None:
    agent.settings.app_keys.unlink()
    agent.settings.boot_error.write_text("no disk")

    agent.watch_boot()

    until(
        lambda: all(each.name != "boot watch" for each in threading.enumerate()),
        seconds=20,
        what="the end of the watch",
    )
