"""The projects that the commands of runs know: `casemate project add|list|set-default|delete` and its file."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import yaml

from core.errors import CasemateError, Forbidden, Invalid, NotFound
from tests.common.runs_site import Site


def test_the_first_project_becomes_the_default_and_the_file_is_its_owners_alone(site: Site) -> None:
    path = site.home / ".casemate/config.yml"

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert yaml.safe_load(path.read_text()) == {
        "projects": [{"name": "main", "url": site.url, "token": site.token, "default": True}]
    }
    assert site.json("project", "list") == [{"name": "main", "url": site.url, "default": True}]


def test_a_wrong_token_is_not_written_down(stranger_site: Site) -> None:
    site = stranger_site

    with pytest.raises(Forbidden, match="[Ii]nvalid token"):
        site.run("project", "add", "--name", "main", "--url", site.url, "--token", "wrong", "-y")

    assert not (site.home / ".casemate/config.yml").exists()


def test_a_project_that_the_server_does_not_know_is_refused(stranger_site: Site) -> None:
    site = stranger_site

    with pytest.raises(NotFound):
        site.run("project", "add", "--name", "no", "--url", site.url, "--token", site.token, "-y")


def test_a_server_that_is_not_there_is_named(stranger_site: Site) -> None:
    with pytest.raises(CasemateError, match="127.0.0.1:9 cannot be reached"):
        stranger_site.run(
            "project", "add", "--name", "main", "--url", "http://127.0.0.1:9", "--token", "x", "-y"
        )


def test_no_token_is_ever_shown(site: Site) -> None:
    for words in (("project", "list"), ("project", "list", "-v"), ("project", "list", "--json")):
        assert site.token not in site.run(*words).output


def test_the_list_says_who_one_is(site: Site) -> None:
    file(site.home / ".casemate/config.yml", site, "main", "other", token_of_other="wrong")

    shown = site.run("project", "list", "-v").stdout.splitlines()

    assert shown[0].split() == ["PROJECT", "URL", "USER", "DEFAULT"]
    assert "admin" in shown[1]
    assert "nvalid token" in shown[2]


def test_projects_are_chosen_and_forgotten(site: Site) -> None:
    file(site.home / ".casemate/config.yml", site, "main", "other")
    site.run("project", "set-default", "other")
    assert [each["default"] for each in site.json("project", "list")] == [False, True]

    with pytest.raises(NotFound):
        site.run("project", "set-default", "nobody")
    site.run("project", "delete", "--name", "other", "-y")

    assert [each["name"] for each in site.json("project", "list")] == ["main"]
    with pytest.raises(NotFound):
        site.run("project", "delete", "--name", "other", "-y")


def test_the_file_of_dstacks_own_client_is_read_and_never_written(stranger_site: Site) -> None:
    site = stranger_site
    theirs = site.home / ".dstack/config.yml"
    file(theirs, site, "main")
    before = theirs.read_bytes()

    assert site.run("ps").exit_code == 0
    site.run("project", "set-default", "main")

    assert theirs.read_bytes() == before
    assert (site.home / ".casemate/config.yml").exists()


def test_the_environment_and_the_option_choose_a_project(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSTACK_PROJECT", "absent")

    with pytest.raises(NotFound, match="project absent is not configured"):
        site.run("ps")
    assert site.json("ps", "--project", "main")["project"] == "main"


def test_without_any_project_the_way_to_one_is_told(stranger_site: Site) -> None:
    with pytest.raises(NotFound, match="casemate project add"):
        stranger_site.run("ps")


@pytest.mark.parametrize(
    "text",
    [
        "projects: 5",
        "projects: [{name: x}]",
        "- 1",
        "a: [",
        "projects: [{name: x, url: y, token: two words}]",
        "[" * 3000,
    ],
)
def test_a_file_that_is_none_is_refused_and_named(stranger_site: Site, text: str) -> None:
    path = stranger_site.home / ".casemate/config.yml"
    path.parent.mkdir()
    path.write_text(text)

    with pytest.raises(Invalid, match=r"\.casemate/config\.yml"):
        stranger_site.run("ps")


def file(path: Path, site: Site, *names: str, token_of_other: str = "") -> None:
    """Writes a file of projects; the first is the default one."""
    path.parent.mkdir(exist_ok=True)
    projects = [
        {
            "name": name,
            "url": site.url,
            "token": token_of_other if n and token_of_other else site.token,
        }
        | ({"default": True} if n == 0 else {})
        for n, name in enumerate(names)
    ]
    path.write_text(json.dumps({"projects": projects}))
