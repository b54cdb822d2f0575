"""Users, key pairs, tokens, projects and members."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from sqlalchemy import select

from core.config import Config
from models.account import SshKey
from models.base import Database
from tests.api.runs.conftest import Api
from tests.api.runs.test_wire import issue

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0xQy0Zr9n7N1pT8m6hSLUhN4HcGZK2FgHqBDd3b1rN me@here"


def user(api: Api, database: Database, name: str = "alice") -> Api:
    return Api(api.client, issue(database, name), project=name)


def test_my_user_has_the_token_i_came_with_and_a_pair(api: Api, database: Database) -> None:
    me = api.ask("/api/users/get_my_user")

    assert me["creds"]["token"] == api.token
    private = serialization.load_ssh_private_key(me["ssh_private_key"].encode(), None)
    public = private.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    assert me["ssh_public_key"] == f"{public.decode()} admin\n"
    assert api.ask("/api/users/get_my_user")["ssh_private_key"] == me["ssh_private_key"]


def test_a_private_key_is_nowhere_in_the_clear(
    api: Api, database: Database, config: Config
) -> None:
    body = api.ask("/api/users/get_my_user")["ssh_private_key"].splitlines()[2]

    with database.reading() as session:
        (row,) = session.scalars(select(SshKey)).all()
    assert row.private_key is not None
    assert body.encode() not in row.private_key
    key = config.data_dir / "ssh-keys-key"
    assert key.stat().st_mode & 0o777 == 0o600
    for path in Path(config.data_dir).rglob("*"):
        assert not path.is_file() or body.encode() not in path.read_bytes(), path


def test_a_token_is_given_by_its_refresh_and_ends_with_the_next(api: Api) -> None:
    made = {"username": "bob", "global_role": "user", "email": None}
    assert api.ask("/api/users/create", made)["ssh_public_key"].startswith("ssh-ed25519 ")
    first = api.ask("/api/users/refresh_token", {"username": "bob"})["creds"]["token"]
    bob = Api(api.client, first, project="bob")
    assert bob.ask("/api/projects/bob/get")["project_name"] == "bob"

    second = bob.ask("/api/users/refresh_token", {"username": "bob"})["creds"]["token"]

    assert bob.post("/api/users/get_my_user").status_code == 403
    assert Api(api.client, second).ask("/api/users/get_my_user")["username"] == "bob"


def test_a_new_pair_takes_the_place_of_the_old_one(api: Api, database: Database) -> None:
    alice = user(api, database)
    before = alice.ask("/api/users/get_my_user")

    after = alice.ask("/api/users/refresh_ssh_key", {"username": "alice"})

    assert after["ssh_public_key"] != before["ssh_public_key"]
    assert after["creds"]["token"] == ""
    assert alice.ask("/api/users/get_my_user")["ssh_private_key"] == after["ssh_private_key"]


def test_what_is_for_admins_is_for_nobody_else(api: Api, database: Database) -> None:
    alice = user(api, database)
    made = {"username": "eve", "global_role": "admin"}
    for path, body in (
        ("create", made), ("update", made), ("delete", {"users": ["admin"]}), ("get_user", {"username": "admin"}),
        ("refresh_token", {"username": "admin"}), ("refresh_ssh_key", {"username": "admin"}),
    ):  # fmt: skip
        answer = alice.post(f"/api/users/{path}", body)
        assert answer.status_code == 403, path
        assert answer.get_json() == {"detail": {"msg": "Access denied", "code": None}}
    assert [each["username"] for each in alice.ask("/api/users/list")] == ["alice"]
    assert len(api.ask("/api/users/list")) == 2


def test_users_are_listed_by_pages_and_counted(api: Api, database: Database) -> None:
    for name in ("alice", "bob", "carol"):
        user(api, database, name)

    counted = api.ask("/api/users/list", {"return_total_count": True, "limit": 2})
    found = api.ask("/api/users/list", {"name_pattern": "aro"})

    assert (counted["total_count"], len(counted["users"])) == (4, 2)
    assert [each["username"] for each in found] == ["carol"]
    assert api.post("/api/users/list", {"name_pattern": "%"}).status_code == 422


def test_a_user_there_is_already_is_told_by_its_code(api: Api) -> None:
    made = {"username": "bob", "global_role": "user"}
    api.ask("/api/users/create", made)

    assert api.refusal("/api/users/create", made)[0] == "resource_exists"
    assert api.refusal("/api/users/get_user", {"username": "nobody"})[0] == "resource_not_exists"
    assert api.refusal("/api/users/create", {**made, "username": "No Name"})[0] == "error"
    changed = api.ask("/api/users/update", {**made, "email": "b@x", "active": False})
    assert (changed["email"], changed["active"]) == ("b@x", False)


def test_a_deleted_user_is_out_at_once(api: Api, database: Database) -> None:
    alice = user(api, database)
    alice.run("true", name="hers")

    api.ask("/api/users/delete", {"users": ["alice"]})

    assert alice.post("/api/users/get_my_user").status_code == 403
    assert api.ask("/api/projects/alice/get")["owner"]["username"] == "admin"
    assert Api(api.client, api.token, "alice").get("hers")["user"] == ""


def test_public_keys_are_added_shown_and_removed(api: Api) -> None:
    added = api.ask("/api/users/public_keys/add", {"key": KEY, "name": None})

    assert (added["name"], added["type"]) == ("me@here", "ssh-ed25519")
    assert added["fingerprint"].startswith("SHA256:")
    assert api.ask("/api/users/public_keys/list") == [added]
    assert api.refusal("/api/users/public_keys/add", {"key": KEY})[0] == "resource_exists"
    for bad in ("", "ssh-rsa x", "hello", KEY.replace("me", "\n me"), "ssh-dss AAAA"):
        assert api.refusal("/api/users/public_keys/add", {"key": bad})[0] == "error"
    missing = {"ids": ["0ffd2e50-41f0-4fee-a1de-bbefaef162ed"]}
    assert api.refusal("/api/users/public_keys/delete", missing)[0] == "resource_not_exists"
    api.ask("/api/users/public_keys/delete", {"ids": [added["id"]]})
    assert api.ask("/api/users/public_keys/list") == []


def test_a_project_is_made_shared_and_removed(api: Api, database: Database) -> None:
    alice, bob = user(api, database), user(api, database, "bob")
    made = alice.ask("/api/projects/create", {"project_name": "lab"})
    assert (made["owner"]["username"], made["is_public"]) == ("alice", False)
    assert bob.post("/api/projects/lab/get").status_code == 403

    members = {"members": [{"username": "bob", "project_role": "manager"}]}
    alice.ask("/api/projects/lab/add_members", members)
    assert bob.ask("/api/projects/lab/get")["members"][1]["project_role"] == "manager"

    own = {"members": [{"username": "bob", "project_role": "admin"}]}
    assert bob.post("/api/projects/lab/add_members", own).status_code == 403
    assert bob.post("/api/projects/delete", {"projects_names": ["lab"]}).status_code == 403
    assert bob.post("/api/projects/lab/remove_members", {"usernames": ["alice"]}).status_code == 403
    bob.ask("/api/projects/lab/remove_members", {"usernames": ["bob"]})
    assert bob.post("/api/projects/lab/get").status_code == 403
    alice.ask("/api/projects/delete", {"projects_names": ["lab"]})
    assert alice.post("/api/projects/lab/get").status_code == 404


def test_a_public_project_may_be_looked_at_and_joined(api: Api, database: Database) -> None:
    alice, bob = user(api, database), user(api, database, "bob")
    alice.ask("/api/projects/create", {"project_name": "open", "is_public": True})

    def names(**query: object) -> set[str]:
        return {each["project_name"] for each in bob.ask("/api/projects/list", query)}

    assert names() == {"bob", "open"}
    assert names(include_not_joined=False) == {"bob"}
    assert bob.ask("/api/projects/open/get")["project_name"] == "open"
    assert bob.post("/api/project/open/runs/get", {"run_name": "x"}).status_code == 403
    admin = {"members": [{"username": "bob", "project_role": "admin"}]}
    assert bob.post("/api/projects/open/add_members", admin).status_code == 403
    bob.ask(
        "/api/projects/open/add_members", {"members": [{"username": "bob", "project_role": "user"}]}
    )
    assert names(include_not_joined=False) == {"bob", "open"}
    alice.ask("/api/projects/open/update", {"is_public": False})
    alice.ask("/api/projects/open/set_members", {"members": []})
    assert names() == {"bob"}


@pytest.mark.parametrize("name", ["-x", "X", "a", "a b", "../x"])
def test_a_bad_name_of_a_project_is_refused(api: Api, name: str) -> None:
    assert api.refusal("/api/projects/create", {"project_name": name})[0] == "error"


def test_a_project_with_fleets_is_not_removed(api: Api) -> None:
    api.ask("/api/projects/create", {"project_name": "lab"})
    assert api.refusal("/api/projects/create", {"project_name": "lab"})[0] == "resource_exists"
    lab = Api(api.client, api.token, "lab")
    assert "lab" in [each["project_name"] for each in api.ask("/api/projects/list_only_no_fleets")]
    lab.fleet()

    code, said = api.refusal("/api/projects/delete", {"projects_names": ["lab"]})

    assert (code, said) == ("error", "Project lab has fleets; delete them first")
    assert "lab" not in [
        each["project_name"] for each in api.ask("/api/projects/list_only_no_fleets")
    ]


@pytest.mark.parametrize("verb", ["add_members", "set_members"])
def test_a_manager_does_not_take_an_admins_role(api: Api, database: Database, verb: str) -> None:
    alice, bob = user(api, database), user(api, database, "bob")
    user(api, database, "carol")
    alice.ask("/api/projects/create", {"project_name": "lab"})
    roles = {"bob": "manager", "carol": "admin"}
    given = [{"username": name, "project_role": role} for name, role in roles.items()]
    alice.ask("/api/projects/lab/add_members", {"members": given})

    given[1]["project_role"] = "user"
    answer = bob.post(f"/api/projects/lab/{verb}", {"members": given})

    assert answer.status_code == 403
    found = alice.ask("/api/projects/lab/get")["members"]
    assert {each["user"]["username"]: each["project_role"] for each in found}["carol"] == "admin"


def test_what_is_named_twice_is_removed_once(api: Api, database: Database) -> None:
    alice = user(api, database)
    alice.ask("/api/projects/create", {"project_name": "lab"})

    alice.ask("/api/projects/delete", {"projects_names": ["lab", "lab"]})
    api.ask("/api/users/delete", {"users": ["alice", "alice"]})

    assert [each["username"] for each in api.ask("/api/users/list", {})] == ["admin"]
