"""The pages of tenants as people use them: in Chromium, before a real service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from selenium.webdriver.common.by import By

from accounts import directory
from models.base import Database
from models.vm import Vm
from tests.browser.person import Person
from tests.common import rows, tenants
from tests.common.service import RunningService

HOSTILE = "<img src=x onerror=canary(1)>"
DOCKER = "services:\n  web:\n    image: nginx:1.{}\n    ports: ['80:80']\n"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4g ann@laptop"


@dataclass(frozen=True)
class Ann:
    """A tenant, and the paths of what is theirs."""

    token: str
    app: str
    vm_log: str
    diff: str
    cluster: str
    run: str
    log: str

    @property
    def pages(self) -> tuple[str, ...]:
        """Every page that a tenant sees."""
        lists = ("apps", "clusters", "jobs", "templates", "templates/web", "prices", "verifier")
        lists += ("runs", "fleets", "events", "keys", "images")
        of_app = (self.app, self.vm_log, f"{self.app}/evidence", f"{self.app}/allowlist", self.diff)
        return (*(f"/console/{each}" for each in lists), *of_app, self.cluster, self.run, self.log)


def make(service: RunningService, name: str, text: str) -> Ann:
    """Gives a new tenant one of everything, with `text` wherever somebody may write."""
    fields = {"name": f"shop-of-{name}", "compose_file": composed(24), "stopped": True}
    vm_id = service.call("prpc/CreateVm", **rows.request(**fields))["id"]
    database = Database(service.data_dir / "casemate.db")
    with database.writing() as session:
        user = directory.add_user(session, name)
        project = directory.project_named(session, name)
        vm = session.get_one(Vm, vm_id)
        vm.project_id = project.id
        vm.boot_error = text
        made = tenants.cluster(session, project, vm, text)
        tenants.jobs(session, project, {"cluster_id": made.id}, text)
        before = tenants.revision(session, vm, composed(25, f"# {text}"), text)
        after = tenants.revision(session, vm, composed(26, f"# not {text}"), text)
        run, job_id = tenants.run(session, project, user, service.data_dir, text)
        tenants.key(session, user, text)
        token = directory.add_token(session, user, name="", made_by="test")[1]
        app = f"/console/apps/{vm.app_id}"
        of_run = f"/console/runs/{project.name}/{run.id}"
        return Ann(
            token,
            app,
            f"{app}/log/{vm_id}",
            f"{app}/diff?from={before}&to={after}",
            f"/console/clusters/{made.id}",
            of_run,
            f"{of_run}/log/{job_id}",
        )


def composed(version: int, more: str = "") -> str:
    return json.dumps({"name": "web", "docker_compose_file": DOCKER.format(version) + more})


@pytest.fixture(scope="module")
def ann(service: RunningService) -> Ann:
    return make(service, "ann", "autumn sale")


@pytest.fixture(scope="module")
def mallory(service: RunningService) -> Ann:
    return make(service, "mallory", HOSTILE)


@pytest.fixture(autouse=True)
def signed_out(person: Person) -> Iterator[None]:
    yield
    person.browser.delete_all_cookies()
    person.complaints()


def signs_in(person: Person, who: Ann) -> None:
    person.goes_to("/sign-in")
    person.types("#token", who.token)
    person.clicks("button", "Sign in")
    person.sees("h1", "Apps")


def test_a_tenant_walks_from_the_apps_to_what_changed(person: Person, ann: Ann) -> None:
    signs_in(person, ann)
    assert [each.text for each in person.finds(".areas a")] == [
        *("Apps", "Clusters", "Runs", "Verifier", "API"),
    ]
    person.clicks(".what a", "shop-of-ann")
    person.sees("#evidence .proof", "It shows no evidence: the CVM is stopped")
    person.sees("#allowlist", "no allow-list on a chain")
    person.clicks("button", "Compare")

    person.sees("ins", "nginx:1.26")
    person.sees("del", "nginx:1.25")
    assert person.complaints() == []


def test_a_cluster_shows_its_traffic_and_renews_itself(person: Person, ann: Ann) -> None:
    signs_in(person, ann)
    person.goes_to(ann.cluster)
    person.sees("figcaption", "Requests a second")
    assert len(person.finds(".charts polyline")) >= 2
    person.run("window.stays = true; document.querySelector('.charts').remove()")

    person.sees(".charts polyline")
    assert person.run("return window.stays")


def test_the_log_of_a_job_is_read_to_its_end(person: Person, ann: Ann) -> None:
    signs_in(person, ann)
    person.goes_to(ann.run)
    person.clicks(".links a", "Log")

    person.sees(".xterm-rows", "the last line")
    person.sees("#log-state", "This is all that the job said.")
    assert person.complaints() == []


def test_a_fleet_appears_and_goes_without_a_reload(
    person: Person, service: RunningService, ann: Ann
) -> None:
    signs_in(person, ann)
    person.goes_to("/console/fleets")
    person.run("window.stays = true; window.confirm = () => true")
    wanted = {"type": "fleet", "name": "pool", "nodes": "0..1"}
    answer = requests.post(
        f"{service.base}/api/project/ann/fleets/apply",
        json={"plan": {"spec": {"configuration": wanted, "profile": {}}}, "force": False},
        headers={"Authorization": f"Bearer {ann.token}"},
        timeout=20,
    )
    assert answer.status_code == 200, answer.text

    person.sees("h2", "pool")
    person.clicks(".head:has(h2) button", "Delete")
    person.sees("#notes", "Deleting: pool")
    assert person.run("return window.stays")
    assert person.complaints() == []


def test_a_key_is_added_and_removed(person: Person, ann: Ann) -> None:
    signs_in(person, ann)
    person.goes_to("/console/keys")
    person.types("#key", KEY)
    person.clicks("button", "Add")
    person.sees("#notes", "The key was added")
    person.sees(".what", "ann@laptop")
    person.run("window.confirm = () => true")
    person.clicks("li:has(.what) button", "Remove")
    person.sees("#notes", "The key was removed")


def test_a_stranger_drops_a_file_on_the_verifier(person: Person, tmp_path: Path) -> None:
    person.goes_to("/console/verifier")
    file = tmp_path / "quote.bin"
    file.write_bytes(b"\4\0\2\0" + b"\0" * 700)
    person.browser.find_element(By.ID, "quote_file").send_keys(str(file))
    person.clicks("button", "Verify")

    person.sees("#refusal", "neither a TDX quote nor a SEV-SNP report")
    person.sees("#quote")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_of_a_tenant_is_wider_than_a_phone(person: Person, ann: Ann, scheme: str) -> None:
    signs_in(person, ann)
    person.prefers(scheme)
    try:
        for width in (390, 1280):
            person.has_window(width)
            for path in ann.pages:
                person.goes_to(path)
                assert person.finds("h1")[0].text not in ("404", "500"), path
                assert person.run("return document.documentElement.scrollWidth") <= width, path
                fields = "input:not([type=hidden]), textarea, select"
                for field in person.finds(fields):
                    assert person.run(
                        "return arguments[0].labels?.length || arguments[0].ariaLabel", field
                    ), path
    finally:
        person.prefers("light")
        person.has_window(1280)


def test_what_a_tenant_writes_runs_no_script(person: Person, mallory: Ann) -> None:
    signs_in(person, mallory)
    watch = "window.ran = []; window.canary = (n) => window.ran.push(n); window.breaches = [];"
    listen = (
        "addEventListener('securitypolicyviolation', (e) => breaches.push(e.violatedDirective));"
    )
    added = person.browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": watch + listen}
    )
    try:
        for path in mallory.pages:
            person.goes_to(path)
            if path == mallory.log:
                person.sees(".xterm-rows", "the last line")
            assert person.run("return [ran, breaches]") == [[], []], path
    finally:
        person.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    assert [line for line in person.complaints() if "403" not in line] == []
