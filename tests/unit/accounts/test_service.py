from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import bcrypt
import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from accounts import directory, service, tokens
from accounts.credentials import Credentials
from accounts.roles import OPERATOR, Caller, GlobalRole, ProjectRole
from accounts.service import Accounts
from core.config import AuthConfig, Config
from core.errors import Forbidden, Unauthenticated
from models.account import ADMIN_ID, MAIN_ID, Token
from models.base import Database

HOUR_MS = 3_600_000


@pytest.fixture
def accounts(config: Config, database: Database, tmp_path: Path) -> Accounts:
    """Authentication on, with one configured token and one htpasswd entry."""
    file = tmp_path / "htpasswd"
    hashed = bcrypt.hashpw(b"her password", bcrypt.gensalt(4)).decode()
    file.write_text(f"carol:{hashed}\n")
    auth = AuthConfig(True, ("configured", ""), file)
    return Accounts.of(replace(config, auth=auth, admin_token="the administrator's"), database)


@pytest.fixture
def issue(database: Database) -> Callable[..., str]:
    """Makes a token of a user, who is made when there is none."""

    def make(name: str, *, role: GlobalRole = GlobalRole.USER, **options: int | None) -> str:
        with database.writing() as session:
            known = {user.name: user for user in directory.users(session)}
            user = known.get(name) or directory.add_user(session, name, role=role)
            return directory.add_token(session, user, name="", made_by="test", **options)[1]  # type: ignore[arg-type]

    return make


def of(accounts: Accounts, token: str) -> Caller:
    return accounts.authenticate(Credentials((token,)))


def is_refused(accounts: Accounts, *given: str, login: tuple[str, str] | None = None) -> bool:
    with pytest.raises(Unauthenticated, match="a valid token is needed"):
        accounts.authenticate(Credentials(given, login))
    return True


def change(database: Database, work: Callable[[Session], object]) -> None:
    with database.writing() as session:
        work(session)


@pytest.mark.parametrize("token", ["configured", "the administrator's"])
def test_a_token_of_the_configuration_is_the_administrators(accounts: Accounts, token: str) -> None:
    caller = of(accounts, token)

    assert caller == replace(OPERATOR, digest=tokens.digest(token))
    assert (caller.user_id, caller.name, caller.project_id) == (ADMIN_ID, "admin", MAIN_ID)
    assert caller.is_operator
    assert accounts.roles(caller) == {MAIN_ID: ProjectRole.ADMIN}


def test_the_kept_token_is_made_where_none_is_given(config: Config, database: Database) -> None:
    made = Accounts.of(config, database)

    kept = (config.data_dir / "admin-token").read_text().strip()
    assert of(made, kept).is_operator
    assert made.htpasswd is None
    assert not made.enabled


def test_a_given_token_is_not_kept(accounts: Accounts, config: Config) -> None:
    assert not (config.data_dir / "admin-token").exists()
    assert "administrator's" not in repr(accounts)
    assert "configured" not in repr(accounts)


def test_with_no_token_only_the_administrator_gets_in(config: Config, database: Database) -> None:
    auth = AuthConfig(True, ())
    accounts = Accounts.of(replace(config, auth=auth, admin_token="given"), database)

    assert of(accounts, "given").is_operator
    for token in ("", "None", "wrong"):
        assert is_refused(accounts, token)


def test_the_first_credential_that_is_valid_counts(
    accounts: Accounts, issue: Callable[..., str]
) -> None:
    token = issue("alice")

    assert accounts.authenticate(Credentials(("wrong", token, "configured"))).name == "alice"
    assert accounts.authenticate(Credentials(("configured", token))).name == "admin"
    assert is_refused(accounts)
    assert is_refused(accounts, "wrong", "worse")


def test_a_users_token_is_theirs(
    accounts: Accounts, database: Database, issue: Callable[..., str]
) -> None:
    alice, boss = of(accounts, issue("alice")), of(accounts, issue("boss", role=GlobalRole.ADMIN))

    assert (alice.name, alice.is_operator, alice.project_id) == ("alice", False, None)
    assert (boss.name, boss.is_operator) == ("boss", True)
    with database.reading() as session:
        assert directory.user_named(session, "alice").id == alice.user_id


def test_an_entry_of_the_htpasswd_file_is_an_operators(accounts: Accounts) -> None:
    caller = accounts.authenticate(Credentials(("her password",), ("carol", "her password")))

    assert (caller.user_id, caller.name, caller.is_operator) == (ADMIN_ID, "carol", True)
    assert accounts.still_valid(caller)
    assert is_refused(accounts, "her password")
    assert is_refused(accounts, login=("carol", "wrong"))
    assert is_refused(accounts, login=("dave", "her password"))
    assert is_refused(replace(accounts, htpasswd=None), login=("carol", "her password"))


def test_every_comparison_is_in_constant_time(
    accounts: Accounts, issue: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # With a comparison that always says no, nobody gets in: there is no other one.
    token = issue("alice")
    login = accounts.authenticate(Credentials((), ("carol", "her password")))
    assert of(accounts, token) and of(accounts, "configured")

    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: False)

    assert is_refused(accounts, token, "configured", "the administrator's")
    assert not accounts.still_valid(login)


def test_a_token_of_the_configuration_costs_no_look_at_the_database(
    accounts: Accounts, database: Database, issue: Callable[..., str]
) -> None:
    asked: list[str] = []
    event.listen(
        database.engine, "before_cursor_execute", lambda c, cur, text, *_: asked.append(text)
    )

    caller = of(accounts, "configured")
    assert accounts.still_valid(caller) and accounts.may_see(caller, "any")
    assert asked == []
    token = issue("alice")
    of(accounts, token)
    asked.clear()
    of(accounts, token)

    assert [text.split()[0] for text in asked if text != "BEGIN"] == ["SELECT"]
    with database.engine.connect() as connection:
        plan = connection.exec_driver_sql(
            f"EXPLAIN QUERY PLAN {asked[-1]}", (tokens.digest(token),)
        ).all()
    assert "SEARCH tokens USING INDEX" in plan[0][-1]
    assert not [step for step in plan if "SCAN" in step[-1]]


@pytest.mark.parametrize(
    "end",
    [
        lambda s, user, token: directory.change_user(s, user, active=False),
        lambda s, user, token: directory.remove_user(s, user),
        lambda s, user, token: directory.revoke_token(s, token.id),
        lambda s, user, token: directory.revoke_tokens(s, user, "test"),
        lambda s, user, token: setattr(token, "expires_ms", 1),
    ],
    ids=["deactivated", "removed", "revoked", "all-revoked", "expired"],
)
def test_what_ends_ends_at_once_for_every_worker(
    accounts: Accounts,
    config: Config,
    database: Database,
    issue: Callable[..., str],
    end: Callable[..., None],
) -> None:
    token = issue("alice", role=GlobalRole.ADMIN)
    other = replace(accounts, database=Database(database.path))
    caller, session_text = of(other, token), other.session_of(token)
    assert other.still_valid(caller) and other.caller_of(session_text) == caller

    with database.writing() as session:
        user = directory.user_named(session, "alice")
        end(session, user, directory.tokens_of(session, user)[0])

    assert is_refused(other, token)
    assert not other.still_valid(caller)
    assert other.caller_of(session_text) is None
    other.database.engine.dispose()


def test_a_token_is_valid_until_its_end(accounts: Accounts, issue: Callable[..., str]) -> None:
    assert of(accounts, issue("alice", valid_for_s=60)).name == "alice"


def test_who_is_no_operator_any_more_loses_streams_and_pages(
    accounts: Accounts, database: Database, issue: Callable[..., str]
) -> None:
    token = issue("boss", role=GlobalRole.ADMIN)
    caller, session_text = of(accounts, token), accounts.session_of(token)

    change(
        database,
        lambda s: directory.change_user(s, directory.user_named(s, "boss"), role=GlobalRole.USER),
    )

    assert not accounts.still_valid(caller)
    left = accounts.caller_of(session_text)
    assert left is not None and not left.is_operator
    assert not of(accounts, token).is_operator


def test_the_last_use_is_noted_to_the_hour(
    accounts: Accounts,
    database: Database,
    issue: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = issue("alice")

    def used() -> int | None:
        with database.reading() as session:
            return session.query(Token).one().used_ms

    assert used() is None
    for now, noted in ((HOUR_MS, HOUR_MS), (2 * HOUR_MS - 1, HOUR_MS), (2 * HOUR_MS, 2 * HOUR_MS)):
        monkeypatch.setattr(service, "_now_ms", lambda now=now: now)
        of(accounts, token)
        assert used() == noted


def test_a_full_disk_keeps_nobody_from_reading(
    accounts: Accounts,
    database: Database,
    issue: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    token = issue("alice")

    def fail(connection: object, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("UPDATE"):
            raise OperationalError(statement, {}, Exception("database or disk is full"))

    event.listen(database.engine, "before_cursor_execute", fail)

    assert of(accounts, token).name == "alice"
    assert "not noted: database or disk is full" in caplog.text


def test_a_browser_keeps_a_digest(accounts: Accounts, issue: Callable[..., str]) -> None:
    boss = issue("boss", role=GlobalRole.ADMIN)
    for given, name in (
        (("configured",), "admin"),
        ((boss,), "boss"),
        (("her password", "carol"), "carol"),
    ):
        kept = accounts.session_of(*given)

        assert given[0] not in kept
        caller = accounts.caller_of(kept)
        assert caller is not None and caller.name == name


@pytest.mark.parametrize("given", [("",), ("wrong",), ("", "carol"), ("wrong", "carol")])
def test_nobody_signs_in_with_something_else(accounts: Accounts, given: tuple[str, ...]) -> None:
    with pytest.raises(Unauthenticated, match="this is not a valid token"):
        accounts.session_of(*given)


def test_a_browser_is_who_signed_in(accounts: Accounts, issue: Callable[..., str]) -> None:
    caller = accounts.caller_of(accounts.session_of(issue("alice")))

    assert caller is not None
    assert (caller.name, caller.is_operator) == ("alice", False)
    assert accounts.caller_of("") is None
    assert accounts.caller_of(tokens.digest("wrong").hex()) is None


def test_without_authentication_everybody_is_the_operator(accounts: Accounts) -> None:
    open_to_all = replace(accounts, enabled=False)

    assert open_to_all.caller_of("") == open_to_all.caller_of("00") == OPERATOR
    assert open_to_all.still_valid(OPERATOR)
    assert not accounts.still_valid(OPERATOR)
    assert is_refused(open_to_all)  # the tenants' surfaces want a token all the same


def test_a_caller_sees_the_projects_they_have_a_role_in(
    accounts: Accounts, database: Database, issue: Callable[..., str]
) -> None:
    alice = of(accounts, issue("alice"))
    with database.writing() as session:
        bob = directory.add_user(session, "bob")
        theirs = directory.project_named(session, "bob")
        own = directory.project_named(session, "alice")

    assert accounts.may_see(alice, own.id)
    assert not accounts.may_see(alice, theirs.id)
    assert not accounts.may_see(alice, MAIN_ID)
    assert not accounts.may_see(alice, None)
    assert accounts.may_see(of(accounts, "configured"), theirs.id)
    with database.writing() as session:
        user = directory.user_named(session, "alice")
        directory.set_member(session, theirs, user, ProjectRole.USER)

    assert accounts.may_see(alice, theirs.id)
    assert list(accounts.roles(alice).items()) == [
        (own.id, ProjectRole.ADMIN),
        (theirs.id, ProjectRole.USER),
    ]
    assert bob.id not in accounts.roles(alice)


def test_new_things_go_to_the_tokens_project_else_to_the_first(
    accounts: Accounts, database: Database, issue: Callable[..., str]
) -> None:
    plain = issue("alice")
    with database.writing() as session:
        alice = directory.user_named(session, "alice")
        own = directory.project_named(session, "alice")
        boss = directory.add_user(session, "boss")
        team = directory.add_project(session, "team", boss)
        directory.set_member(session, team, alice, ProjectRole.USER)
        _, bound = directory.add_token(session, alice, name="", made_by="x", project=team)

    assert accounts.home(of(accounts, plain)) == own.id
    assert accounts.home(of(accounts, bound)) == team.id
    change(database, lambda s: directory.remove_member(s, team, alice))
    assert accounts.home(of(accounts, bound)) == own.id
    change(database, lambda s: directory.remove_project(s, own))

    with pytest.raises(Forbidden, match="alice is a member of no project"):
        accounts.home(of(accounts, bound))


@pytest.mark.parametrize(
    "end",
    [
        lambda s, user, own: directory.revoke_token(s, directory.tokens_of(s, user)[0].id),
        lambda s, user, own: directory.remove_project(s, own),
    ],
    ids=["token", "project"],
)
def test_a_stream_ends_at_the_piece_after_the_right_to_it(
    accounts: Accounts,
    database: Database,
    issue: Callable[..., str],
    end: Callable[..., None],
) -> None:
    alice = of(accounts, issue("alice"))
    with database.reading() as session:
        own = directory.project_named(session, "alice")
    stream = accounts.while_allowed(alice, own.id, iter(["one", "two", "three"]))

    assert next(stream) == "one"
    with database.writing() as session:
        end(session, directory.user_named(session, "alice"), own)

    assert list(stream) == []


def test_a_stream_that_stays_allowed_is_given_whole(accounts: Accounts) -> None:
    caller = of(accounts, "configured")

    assert list(accounts.while_allowed(caller, None, iter(["one", "two"]))) == ["one", "two"]
