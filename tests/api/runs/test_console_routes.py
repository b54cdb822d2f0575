"""The console's pages of runs, as a browser without script sees them."""

from __future__ import annotations

from dataclasses import dataclass
from html import unescape

import pytest
from flask import Flask

from accounts import directory
from core.config import Config
from models.base import Database
from runs.console_routes import PAGE
from runs.logs import log_of
from tests.api.runs.conftest import Api
from tests.common import tenants
from tests.common.tenants import HOSTILE, Browser

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4g ann@laptop"


@dataclass(frozen=True)
class Scene:
    """Ann has a run, full of markup; Bob has nothing."""

    app: Flask
    config: Config
    ann: str
    bob: str
    run: str
    job: str

    @property
    def page(self) -> str:
        """The run's page."""
        return f"/console/runs/ann/{self.run}"

    def browser(self, token: str) -> Browser:
        """A browser of the holder of a token."""
        return Browser.of(self.app, token)


@pytest.fixture
def scene(app: Flask, config: Config, database: Database) -> Scene:
    with database.writing() as session:
        people = [directory.add_user(session, name) for name in ("ann", "bob")]
        project = directory.project_named(session, "ann")
        run, job = tenants.run(session, project, people[0], config.data_dir, HOSTILE)
        tenants.key(session, people[0], HOSTILE)
        keys = [directory.add_token(session, each, name="", made_by="test")[1] for each in people]
        return Scene(app, config, keys[0], keys[1], run.id, job)


def test_a_run_is_seen_by_its_project_and_by_operators_alone(scene: Scene) -> None:
    lists = ("/console/runs", "/console/fleets", "/console/events")
    of_run = (scene.page, f"{scene.page}/log/{scene.job}")
    admin = (scene.config.data_dir / "admin-token").read_text().strip()
    for token in (scene.ann, admin):
        browser = scene.browser(token)
        assert all("&lt;img" in browser.sees(each) for each in (*lists, *of_run))
        assert scene.run not in browser.sees("/console/runs?active=")

    other = scene.browser(scene.bob)
    assert all("&lt;img" not in other.sees(each) for each in lists)
    for each in of_run:
        other.sees(each, 403)
        other.sees(each.replace("/ann/", "/bob/"), 404)
    output = f"{scene.page}/output/{scene.job}"
    assert other.client.get(output).status_code == 403
    assert other.client.get(output.replace("/ann/", "/bob/")).status_code == 404


def test_a_run_shows_its_jobs_and_what_happened(scene: Scene) -> None:
    page = scene.browser(scene.ann).sees(scene.page)

    assert "exit status 3" in page
    assert f"{scene.page}/log/{scene.job}" in page
    assert "Run submitted" in page and "Job status changed" in page
    assert 'hx-trigger="every 3s"' in page


def test_a_log_is_read_from_where_one_was(scene: Scene) -> None:
    browser = scene.browser(scene.ann)
    path = f"{scene.page}/output/{scene.job}"
    first = browser.client.get(path)
    assert b"the last line" in first.data
    assert first.headers["X-Log-Over"] == "1"
    assert first.mimetype == "application/octet-stream"

    log = log_of(scene.config.data_dir, scene.job)
    log.append(b"more")
    log.close()

    second = browser.client.get(f"{path}?after={first.headers['X-Log-End']}")
    assert second.data == b"more"
    for wrong in ("1", "x", "-1", "9" * 18, "9" * 30):
        assert browser.client.get(f"{path}?after={wrong}").status_code == 400


def test_ones_own_keys_are_added_and_removed(scene: Scene) -> None:
    ann, bob = scene.browser(scene.ann), scene.browser(scene.bob)
    before = ann.sees("/console/keys")
    assert "&lt;img" in before and "&lt;img" not in bob.sees("/console/keys")

    added = ann.sends("/console/keys", key=KEY, name="", back="/console/keys")
    assert added.location == "/console/keys"
    page = ann.sees("/console/keys")
    assert "The key was added" in page and "ann@laptop" in page
    (made,) = {line for line in page.split('"') if line.startswith("key-")} - set(before.split('"'))

    bob.sends(f"/console/keys/{made.removeprefix('key-')}/delete", back="/console/keys")
    assert "not found" in bob.sees("/console/keys")
    assert made in ann.sees("/console/keys")
    ann.sends(f"/console/keys/{made.removeprefix('key-')}/delete", back="/console/keys")
    assert made not in ann.sees("/console/keys")


def test_what_is_no_key_is_refused_in_words(scene: Scene) -> None:
    ann = scene.browser(scene.ann)

    ann.sends("/console/keys", key=f"ssh-ed25519 {HOSTILE}", back="/console/keys")

    assert "is no public key of OpenSSH" in ann.sees("/console/keys")


def test_a_change_that_comes_from_elsewhere_is_refused(scene: Scene) -> None:
    ann = scene.browser(scene.ann)
    for path in ("/console/keys", "/console/keys/x/delete", f"{scene.page}/stop"):
        for csrf in ("", "x" * 43):
            assert ann.client.post(path, data={"key": KEY, "csrf": csrf}).status_code == 403
    assert "ann@laptop" not in ann.sees("/console/keys")


def test_another_projects_run_is_not_stopped(scene: Scene) -> None:
    bob = scene.browser(scene.bob)

    assert bob.sends(f"{scene.page}/stop").status_code == 403
    assert bob.sends(f"{scene.page.replace('/ann/', '/bob/')}/stop").status_code == 404


@pytest.mark.parametrize("query", ["before=x", "before=9999-99-99", "before=2026-01-01&id=x"])
def test_a_list_begins_where_it_is_told(scene: Scene, query: str) -> None:
    browser = scene.browser(scene.ann)

    for path in ("/console/runs", "/console/events", "/console/fleets"):
        browser.sees(f"{path}?{query}")


def test_a_run_that_is_under_way_is_stopped_and_then_hastened(scene: Scene) -> None:
    ann = scene.browser(scene.ann)
    api = Api(scene.app.test_client(), scene.ann, "ann")
    path = f"/console/runs/ann/{api.run('sleep 60', name='long')['id']}"
    assert ">Stop<" in ann.sees(path)

    ann.sends(f"{path}/stop", back=path)
    page = ann.sees(path)
    assert "Stopping: long" in page and ">Stop now<" in page
    ann.sends(f"{path}/stop", back=path, abort="")

    assert api.get("long")["termination_reason"] == "aborted_by_user"


def test_a_fleet_is_deleted_by_its_project_alone(scene: Scene) -> None:
    ann, bob = scene.browser(scene.ann), scene.browser(scene.bob)
    api = Api(scene.app.test_client(), scene.ann, "ann")
    path = f"/console/fleets/ann/{api.fleet('pool')['id']}/delete"
    assert path in ann.sees("/console/fleets") and path not in bob.sees("/console/fleets")

    assert bob.sends(path).status_code == 403
    assert bob.sends(path.replace("/ann/", "/bob/")).status_code == 404
    assert ann.client.post(path, data={"csrf": "x" * 43}).status_code == 403
    assert api.ask("fleets/get", {"name": "pool"})["status"] == "active"
    ann.sends(path, back="/console/fleets")

    page = ann.sees("/console/fleets")
    assert "Deleting: pool" in page and path not in page
    assert api.ask("fleets/get", {"name": "pool"})["status"] == "terminating"


def test_a_long_list_of_fleets_goes_on_behind_its_end(scene: Scene) -> None:
    ann = scene.browser(scene.ann)
    api = Api(scene.app.test_client(), scene.ann, "ann")
    for number in range(PAGE + 1):
        api.fleet(f"pool-{number:02}")

    page = ann.sees("/console/fleets")
    link = page.partition("Older ones")[0].rpartition('href="')[2].partition('"')[0]
    rest = ann.sees(unescape(link))

    assert "pool-50" in page and "pool-00" not in page
    assert "pool-00" in rest and "pool-50" not in rest
