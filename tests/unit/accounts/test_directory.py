from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from accounts import directory, tokens
from accounts.roles import GlobalRole, ProjectRole
from core.errors import CasemateError, Conflict, Invalid, NotFound
from models.account import ADMIN_ID, MAIN_ID, Project, Token
from models.base import Database
from tests.common import rows


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.writing() as session:
        yield session


def test_the_first_user_and_project_are_there_from_the_start(session: Session) -> None:
    (admin,) = directory.users(session)
    (main,) = directory.projects(session)

    assert (admin.id, admin.name, admin.role, admin.active) == (ADMIN_ID, "admin", "admin", True)
    assert (main.id, main.name, main.owner) == (MAIN_ID, "main", admin)
    assert directory.role_in(session, main, admin) is ProjectRole.ADMIN


def test_a_new_user_gets_a_project_of_the_same_name(session: Session) -> None:
    alice = directory.add_user(session, "alice", email="alice@example.org")

    own = directory.project_named(session, "alice")
    assert (alice.role, alice.active, alice.email) == ("user", True, "alice@example.org")
    assert (own.owner, directory.role_in(session, own, alice)) == (alice, ProjectRole.ADMIN)
    assert directory.user_named(session, "alice") is alice
    assert [user.name for user in directory.users(session)] == ["admin", "alice"]


@pytest.mark.parametrize("name", ["", "Alice", "a b", "é", "a/b", "x" * 61, "a\n", "../a", "а"])
def test_a_users_name_has_its_alphabet(session: Session, name: str) -> None:
    with pytest.raises(Invalid, match="name: must be 1 to 60 of"):
        directory.add_user(session, name)


def test_an_address_of_a_chain_is_a_users_name(session: Session) -> None:
    name = "0x" + "ab" * 20

    assert directory.add_user(session, name).name == name
    assert directory.project_named(session, name).name == name


def test_a_taken_name_is_refused(session: Session) -> None:
    alice = directory.add_user(session, "alice")
    directory.add_project(session, "team", alice)

    with pytest.raises(Conflict, match="a user alice already"):
        directory.add_user(session, "alice")
    with pytest.raises(Conflict, match="a project team already"):
        directory.add_user(session, "team")
    with pytest.raises(Conflict, match="a project team already"):
        directory.add_project(session, "team", alice)


def test_of_users_made_at_once_with_one_name_one_is_made(database: Database) -> None:
    def make(_: int) -> bool:
        try:
            with database.writing() as session:
                directory.add_user(session, "alice")
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(make, range(24))) == 1


def test_what_is_given_of_a_user_is_changed(session: Session) -> None:
    alice = directory.add_user(session, "alice", email="old")

    directory.change_user(session, alice, role=GlobalRole.ADMIN)
    assert (alice.role, alice.email, alice.active) == ("admin", "old", True)
    directory.change_user(session, alice, email="new", active=False)

    assert (alice.role, alice.email, alice.active) == ("admin", "new", False)


def test_the_administrator_stays(session: Session) -> None:
    admin = directory.user_named(session, "admin")

    for changes in ({"role": GlobalRole.USER}, {"active": False}):
        with pytest.raises(Invalid, match="stays an active admin"):
            directory.change_user(session, admin, **changes)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="cannot be removed"):
        directory.remove_user(session, admin)
    directory.change_user(session, admin, role=GlobalRole.ADMIN, email="x", active=True)

    assert admin.email == "x"


def test_what_a_removed_user_owned_passes_to_the_administrator(session: Session) -> None:
    alice = directory.add_user(session, "alice")
    directory.add_token(session, alice, name="", made_by="runs")
    main, own = (directory.project_named(session, name) for name in ("main", "alice"))
    directory.set_member(session, main, alice, ProjectRole.MANAGER)

    directory.remove_user(session, alice)
    session.expire_all()

    assert [user.name for user in directory.users(session)] == ["admin"]
    assert own.owner.name == "admin"
    assert [m.user.name for m in directory.members(session, own)] == ["admin"]
    assert [m.user.name for m in directory.members(session, main)] == ["admin"]
    assert directory.tokens_of(session) == []
    with pytest.raises(Conflict):  # the name of the project is taken still
        directory.add_user(session, "alice")


def test_a_token_is_kept_as_its_digest_alone(database: Database) -> None:
    with database.writing() as session:
        alice = directory.add_user(session, "alice")
        token, secret = directory.add_token(session, alice, name="laptop", made_by="operator")

    assert token.digest == tokens.digest(secret)
    assert (token.name, token.made_by, token.project, token.expires_ms) == (
        "laptop", "operator", None, None,
    )  # fmt: skip
    with database.reading() as session:
        dump = "\n".join(session.connection().connection.driver_connection.iterdump())  # type: ignore[union-attr]
    assert "laptop" in dump
    assert secret not in dump
    assert secret.removeprefix(tokens.PREFIX) not in dump


def test_a_token_makes_things_where_its_user_has_a_role(session: Session) -> None:
    alice, bob = (directory.add_user(session, name) for name in ("alice", "bob"))
    theirs = directory.project_named(session, "bob")

    token, _ = directory.add_token(session, bob, name="", made_by="x", project=theirs)
    assert token.project is theirs
    with pytest.raises(Invalid, match="project: alice has no role in bob"):
        directory.add_token(session, alice, name="", made_by="x", project=theirs)


def test_a_token_may_have_an_end(session: Session) -> None:
    admin = directory.user_named(session, "admin")

    token, _ = directory.add_token(session, admin, name="", made_by="x", valid_for_s=60)

    assert token.expires_ms == token.created_ms + 60_000


def test_a_revoked_token_keeps_the_time_of_its_end(session: Session) -> None:
    admin = directory.user_named(session, "admin")
    token, _ = directory.add_token(session, admin, name="", made_by="x")

    directory.revoke_token(session, token.id)
    assert token.revoked_ms is not None
    token.revoked_ms = 5
    directory.revoke_token(session, token.id)

    assert token.revoked_ms == 5
    with pytest.raises(NotFound, match="there is no token nope"):
        directory.revoke_token(session, "nope")


def test_the_tokens_that_one_surface_issued_end_together(session: Session) -> None:
    alice, bob = (directory.add_user(session, name) for name in ("alice", "bob"))
    made = {
        (user.name, surface): directory.add_token(session, user, name="", made_by=surface)[0]
        for user in (alice, bob)
        for surface in ("runs", "keys")
    }

    directory.revoke_tokens(session, alice, "runs")
    session.expire_all()

    ended = {key for key, token in made.items() if token.revoked_ms is not None}
    assert ended == {("alice", "runs")}
    assert {t.user.name for t in directory.tokens_of(session, bob)} == {"bob"}
    assert len(directory.tokens_of(session)) == 4


@pytest.mark.parametrize("name", ["", "a", "Team", "1team", "-team", "te_am", "a" * 42, "team\n"])
def test_a_projects_name_has_its_alphabet(session: Session, name: str) -> None:
    admin = directory.user_named(session, "admin")

    with pytest.raises(Invalid, match="name: must be 2 to 41 of"):
        directory.add_project(session, name, admin)


def test_a_project_goes_with_its_memberships_and_leaves_tokens(session: Session) -> None:
    alice = directory.add_user(session, "alice")
    team = directory.add_project(session, "team", alice)
    token, _ = directory.add_token(session, alice, name="", made_by="x", project=team)

    directory.remove_project(session, team)
    session.expire_all()

    assert token.project is None
    assert [each.name for each in directory.projects(session)] == ["alice", "main"]


def test_a_project_with_vms_stays(session: Session) -> None:
    team = directory.add_project(session, "team", directory.user_named(session, "admin"))
    vm = rows.vm(project_id=team.id)
    session.add(vm)

    with pytest.raises(Conflict, match="project team has 1 VMs"):
        directory.remove_project(session, team)
    session.delete(vm)
    directory.remove_project(session, team)

    with pytest.raises(Invalid, match="main"):
        directory.remove_project(session, directory.project_named(session, "main"))


def test_members_come_change_and_go(session: Session) -> None:
    alice, bob = (directory.add_user(session, name) for name in ("alice", "bob"))
    team = directory.add_project(session, "team", alice)

    assert directory.role_in(session, team, bob) is None
    directory.set_member(session, team, bob, ProjectRole.USER)
    directory.set_member(session, team, bob, ProjectRole.MANAGER)
    shown = [(m.user.name, m.role) for m in directory.members(session, team)]
    directory.remove_member(session, team, bob)

    assert shown == [("alice", "admin"), ("bob", "manager")]
    assert directory.role_in(session, team, bob) is None
    with pytest.raises(NotFound, match="bob is not a member of project team"):
        directory.remove_member(session, team, bob)


def test_the_owner_stays_the_projects_admin(session: Session) -> None:
    alice = directory.add_user(session, "alice")
    own = directory.project_named(session, "alice")

    with pytest.raises(Invalid, match="stays its admin"):
        directory.set_member(session, own, alice, ProjectRole.USER)
    with pytest.raises(Invalid, match="stays its admin"):
        directory.remove_member(session, own, alice)
    directory.set_member(session, own, alice, ProjectRole.ADMIN)


@pytest.mark.parametrize(
    "ask",
    [
        lambda session: directory.user_named(session, "nope"),
        lambda session: directory.project_named(session, "nope"),
    ],
)
def test_what_is_not_there_is_not_found(session: Session, ask: Callable[[Session], object]) -> None:
    with pytest.raises(NotFound, match="nope"):
        ask(session)


def test_a_verb_that_is_refused_leaves_nothing(database: Database) -> None:
    with pytest.raises(CasemateError), database.writing() as session:
        alice = directory.add_user(session, "alice")
        directory.add_project(session, "NO", alice)

    with database.reading() as session:
        assert [user.name for user in directory.users(session)] == ["admin"]
        assert session.execute(text("SELECT count(*) FROM projects")).scalar() == 1
        assert session.query(Project).count() == 1
        assert session.query(Token).count() == 0
