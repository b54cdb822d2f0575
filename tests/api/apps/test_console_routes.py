"""The console's pages of apps, as a browser without script sees them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from flask import Flask

from core.config import Config
from models.base import Database
from models.vm import Vm
from tests.api.apps.conftest import COMPOSE, CONTRACT, Api, Contract
from tests.common import tenants
from tests.common.tenants import HOSTILE, Browser

OTHER = COMPOSE.replace("nginx", "nginx:2")


@pytest.fixture
def deployed(ann: Api) -> dict[str, Any]:
    """An app of Ann's with one VM."""
    told: dict[str, Any] = ann.deploy("web-app")
    return told


@pytest.fixture
def path(deployed: dict[str, Any]) -> str:
    return f"/console/apps/{deployed['app_id']}"


@pytest.fixture
def revisions(database: Database, deployed: dict[str, Any]) -> tuple[str, str]:
    """Two more texts that its VM booted, the second of them with markup."""
    with database.writing() as session:
        vm = session.get_one(Vm, deployed["vm_uuid"])
        texts = (COMPOSE, OTHER + HOSTILE)
        keys = [
            tenants.revision(session, vm, json.dumps({"docker_compose_file": text}), HOSTILE)
            for text in texts
        ]
        return keys[0], keys[1]


def test_an_app_is_seen_by_its_project_and_by_operators_alone(
    app: Flask,
    config: Config,
    ann: Api,
    bob: Api,
    deployed: dict[str, Any],
    path: str,
    revisions: tuple[str, str],
) -> None:
    pages = ("", "/evidence", "/allowlist", f"/diff?from={revisions[0]}&to={revisions[1]}")
    pages += (f"/log/{deployed['vm_uuid']}",)
    for token in (ann.key, (config.data_dir / "admin-token").read_text().strip()):
        browser = Browser.of(app, token)
        assert path in browser.sees("/console/apps")
        for each in pages:
            browser.sees(path + each)

    other = Browser.of(app, bob.key)
    assert path not in other.sees("/console/apps")
    for each in pages:
        assert other.sees(path + each, 404) == other.sees(f"/console/apps/{'0' * 40}{each}", 404)


def test_an_operator_is_led_to_the_vm_and_a_tenant_not_where_they_may_not_go(
    app: Flask, config: Config, ann: Api, deployed: dict[str, Any], path: str
) -> None:
    link = f'href="/console/vm/{deployed["vm_uuid"]}"'

    assert link not in Browser.of(app, ann.key).sees(path)
    admin = (config.data_dir / "admin-token").read_text().strip()
    assert link in Browser.of(app, admin).sees(path)


def test_a_tenant_reads_the_log_of_their_vm_and_of_no_other(
    app: Flask, ann: Api, bob: Api, deployed: dict[str, Any], path: str
) -> None:
    vm_id, other = deployed["vm_uuid"], bob.deploy("web-app-2")["vm_uuid"]
    log = app.extensions["vms"].reconciler.workdir(vm_id).log("serial")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("booted\n")
    browser = Browser.of(app, ann.key)

    assert f'data-url="/logs?id={vm_id}&amp;' in browser.sees(f"{path}/log/{vm_id}")
    assert browser.client.get(f"/logs?id={vm_id}").text == "booted\n"
    browser.sees(f"{path}/log/{other}", 404)


def test_a_list_is_searched_and_paged(
    app: Flask, ann: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.console_routes.PAGE", 2)
    for number in range(3):
        ann.deploy(f"shop-{number:02}")
    browser = Browser.of(app, ann.key)

    assert "page 1 of 2" in browser.sees("/console/apps")
    assert "shop-00" in browser.sees("/console/apps?page=2")
    assert "<strong>shop-01</strong>" in browser.sees("/console/apps?q=shop-01")
    assert "None matches" in browser.sees(f"/console/apps?q={HOSTILE}")
    assert ">3</strong> in all" in browser.sees("/console/apps?page=99999999999")


def test_what_changed_is_shown_line_by_line(
    app: Flask, ann: Api, path: str, revisions: tuple[str, str]
) -> None:
    browser = Browser.of(app, ann.key)
    page = browser.sees(path)
    assert all(f'value="{each}"' in page for each in revisions)

    shown = unescape(browser.client.get(f"{path}/diff?from={revisions[0]}&to={revisions[1]}").text)

    assert "<h2>docker_compose_file</h2>" in shown
    assert re.search(r"<del>\s+image: nginx</del>", shown)
    assert re.search(r"<ins>\s+image: nginx:2</ins>", shown)
    assert "<td>  web:</td>" in shown  # what stayed
    same = browser.sees(f"{path}/diff?from={revisions[0]}&to={revisions[0]}")
    assert "The compose text is the same." in same
    browser.sees(f"{path}/diff?from=none&to={revisions[0]}", 404)
    browser.sees(f"{path}/diff", 404)


def test_a_revision_of_another_app_is_none_of_this_one(
    app: Flask, ann: Api, path: str, revisions: tuple[str, str]
) -> None:
    other = ann.deploy("other-app")

    Browser.of(app, ann.key).sees(
        f"/console/apps/{other['app_id']}/diff?from={revisions[0]}&to={revisions[1]}", 404
    )


def test_an_app_whose_kms_asks_no_contract_says_so(app: Flask, ann: Api, path: str) -> None:
    assert "Its KMS asks no contract" in Browser.of(app, ann.key).sees(f"{path}/allowlist")


def on_chain(ann: Api) -> Any:
    """An app that a contract decides about."""
    told = ann.provision("chain-app", kms_id="chain")
    more = {
        "app_id": CONTRACT,
        "contract_address": f"0x{CONTRACT}",
        "deployer_address": "0x" + "de" * 20,
    }
    return ann.post("/cvms", {"compose_hash": told["compose_hash"], **more})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda contract, text: None, "not allowed"),
        (lambda contract, text: (contract.hashes.add(text), setattr(contract, "any_device", True)),
         "its text is on the list; any device may run it"),
        (lambda contract, text: setattr(contract, "is_there", False), "not known"),
    ],
    ids=["not on the list", "allowed", "no contract"],
)  # fmt: skip
def test_the_allow_list_is_told_as_the_contract_tells_it(
    app: Flask,
    ann: Api,
    contract: Contract,
    change: Callable[[Contract, str], object],
    words: str,
) -> None:
    told = on_chain(ann)
    found = ann.get(f"/apps/{told['app_id']}/revisions")["revisions"][0]
    change(contract, found["compose_hash"])

    assert words in Browser.of(app, ann.key).sees(f"/console/apps/{told['app_id']}/allowlist")


def test_evidence_that_is_not_there_is_not_proven(app: Flask, ann: Api, path: str) -> None:
    shown = Browser.of(app, ann.key).sees(f"{path}/evidence")

    assert "not proven" in shown
    assert "Its TEE is simulated" in shown
    assert "It shows no evidence" in shown
