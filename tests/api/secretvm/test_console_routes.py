"""The console's pages of SecretVM, as a browser without script sees them."""

from __future__ import annotations

import json
from io import BytesIO

import pytest
from flask import Flask
from flask.testing import FlaskClient

from accounts import directory
from models.base import Database
from models.vm import Vm
from secretvm.proof import Asked, Proof
from tests.api.secretvm.conftest import ADMIN, Tenant
from tests.common import tenants
from tests.common.evidence import TdxVm
from tests.common.tenants import HOSTILE, Browser

QUOTE = TdxVm().attestation().platform.quote  # type: ignore[union-attr]


@pytest.fixture
def cluster_id(alice: Tenant, database: Database) -> str:
    """A cluster of Alice's, full of markup, with a job in each state."""
    vm_id = alice.made()["id"]
    with database.writing() as session:
        vm, project = session.get_one(Vm, vm_id), directory.project_named(session, "alice")
        session.execute(tenants.SecretVm.__table__.delete())  # a node has its own
        made = tenants.cluster(session, project, vm, HOSTILE)
        tenants.jobs(session, project, {"cluster_id": made.id}, HOSTILE)
        return made.id


def test_a_cluster_is_seen_by_its_project_and_by_operators_alone(
    app: Flask, alice: Tenant, bob: Tenant, cluster_id: str
) -> None:
    page = f"/console/clusters/{cluster_id}"
    for token in (alice.key, ADMIN):
        browser = Browser.of(app, token)
        assert cluster_id in browser.sees("/console/clusters")
        assert "&lt;img src=x" in browser.sees(page)
        assert "cluster.update" in browser.sees("/console/jobs")

    other = Browser.of(app, bob.key)
    assert cluster_id not in other.sees("/console/clusters")
    assert cluster_id not in other.sees("/console/jobs")
    refusals = [other.sees(each, 404) for each in (page, f"/console/clusters/{'x' * 36}")]
    assert len({each.replace(cluster_id, "x" * 36) for each in refusals}) == 1


def test_a_cluster_shows_nodes_and_the_traffic_of_the_last_hour(
    app: Flask, alice: Tenant, cluster_id: str
) -> None:
    page = Browser.of(app, alice.key).sees(f"/console/clusters/{cluster_id}")

    assert "Requests a second" in page and page.count("<polyline") >= 2
    assert "weight 1" in page and "200: 1200" in page
    assert "50.0 ms on average" in page
    assert 'hx-trigger="every 3s"' in page


def test_jobs_show_progress_and_error(app: Flask, alice: Tenant, cluster_id: str) -> None:
    page = Browser.of(app, alice.key).sees("/console/jobs")

    assert 'value="40" max="100"' in page
    assert '<div class="bad">&lt;img' in page
    assert f'href="/console/clusters/{cluster_id}"' in page


def test_a_template_can_be_read_and_copied(app: Flask, alice: Tenant) -> None:
    browser = Browser.of(app, alice.key)
    templates = alice.get("/templates").json
    assert templates

    page = browser.sees("/console/templates")
    for each in templates:
        assert f"/console/templates/{each['id']}" in page
        shown = browser.sees(f"/console/templates/{each['id']}")
        assert 'data-copy="docker-compose"' in shown
    browser.sees("/console/templates/none", 404)


def test_prices_are_shown(app: Flask, alice: Tenant, admin: Tenant) -> None:
    assert "no price is known" in Browser.of(app, alice.key).sees("/console/prices")
    assert admin.call("PUT", "/coin-price", json={"price_usd": 0.25}).status_code == 200

    assert "$0.25" in Browser.of(app, alice.key).sees("/console/prices")


# The verifier, which is for everybody ----------------------------------------------------------


def test_a_stranger_is_told_what_a_quote_proves(client: FlaskClient) -> None:
    assert 'action="/console/verifier"' in client.get("/console/verifier").text

    told = client.post("/console/verifier", data={"quote": QUOTE.hex()})

    assert told.status_code == 200
    assert "Not proven" in told.text
    assert "That a processor made this TDX quote" in told.text
    assert "What the evidence says" in told.text


def test_files_are_taken_byte_for_byte_and_pasted_lines_as_they_were(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Asked] = []
    monkeypatch.setattr(
        "secretvm.proof.examine",
        lambda _, asked: seen.append(asked) or Proof(is_proven=False, proves=(), lacks=()),
    )
    form = {"quote_file": (BytesIO(QUOTE), "q"), "compose_file": (BytesIO(b"a\r\nb"), "c")}
    client.post("/console/verifier", data=form)
    client.post("/console/verifier", data={"quote": QUOTE.hex(), "compose": "a\r\nb"})

    assert [each.quote for each in seen] == [QUOTE, QUOTE]
    assert [each.compose for each in seen] == [b"a\r\nb", b"a\nb"]


def test_a_refusal_keeps_what_was_typed(client: FlaskClient) -> None:
    form = {"quote": "zz", "compose": f"</textarea>{HOSTILE}", "MRTD": f'">{HOSTILE}'}

    told = client.post("/console/verifier", data=form)

    assert told.status_code == 400
    assert "quote: must be hex or base64 text" in told.text
    assert "&lt;/textarea&gt;&lt;img" in told.text
    assert "<img src=x" not in told.text


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"quote": "00"},
        {"quote": "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")},
        {"compose": "x", "MRTD": "g" * 96},
        {"compose": "x", "event_log": "{" * 50_000},
        {"quote": QUOTE.hex(), "compose": "x", "event_log": "[]", "app_compose": "\0"},
        {"quote": QUOTE.hex(), "compose": "x", "event_log": json.dumps([1]), "app_compose": "{}"},
    ],
)
def test_nonsense_is_refused_in_words(client: FlaskClient, form: dict[str, str]) -> None:
    told = client.post("/console/verifier", data=form)

    assert told.status_code == 400
    assert 'id="refusal"' in told.text
