from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounts import tokens
from accounts.service import Accounts
from core.config import AuthConfig, Config
from core.errors import Unauthenticated

ACCOUNTS = Accounts(True, (tokens.digest("first"), tokens.digest("sécond")))


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer first",
        "bearer first",
        "Bearer  first ",
        basic("anybody:first"),
        basic("first:"),
        basic(":first"),
        basic("first"),
        basic("anybody:sécond"),
        basic("first:").replace("Basic", "BASIC"),
    ],
)
def test_a_valid_credential_is_taken_in_every_documented_form(authorization: str) -> None:
    ACCOUNTS.authenticate(authorization, "")


def test_the_administrators_header_is_taken() -> None:
    ACCOUNTS.authenticate("", "first")
    ACCOUNTS.authenticate("Bearer wrong", "first")


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer first second",
        "first",
        "Token first",
        "Basic",
        "Basic ",
        "Basic first",
        "Basic \xe9\xff",
        f"Basic {base64.b64encode(bytes([255, 254])).decode()}",
        basic("first:wrong"),
        basic("wrong:"),
        basic(":"),
        "\xff\xfe",
    ],
)
def test_anything_else_is_refused(authorization: str) -> None:
    with pytest.raises(Unauthenticated, match="a valid token is needed"):
        ACCOUNTS.authenticate(authorization, "")


@given(st.text(st.characters(max_codepoint=255)), st.text(st.characters(max_codepoint=255)))
def test_any_header_is_refused_or_taken_and_never_breaks(authorization: str, token: str) -> None:
    for header in (authorization, f"Bearer {authorization}", f"Basic {authorization}"):
        with pytest.raises(Unauthenticated):
            ACCOUNTS.authenticate(header, token)


def test_without_authentication_everybody_may_call() -> None:
    replace(ACCOUNTS, enabled=False).authenticate("", "")


def test_with_authentication_and_no_token_nobody_may_call() -> None:
    nobody = Accounts(True, ())

    for token in ("", "None", "first"):
        with pytest.raises(Unauthenticated):
            nobody.authenticate(f"Bearer {token}", token)
        assert not nobody.knows(token)


def test_an_empty_configured_token_lets_nobody_in(config: Config) -> None:
    accounts = Accounts.of(replace(config, auth=AuthConfig(True, ("",))))

    with pytest.raises(Unauthenticated):
        accounts.authenticate("Bearer ", "")
    with pytest.raises(Unauthenticated):
        accounts.authenticate(basic(":"), "")


def test_the_configured_tokens_and_the_administrators_are_known(config: Config) -> None:
    accounts = Accounts.of(replace(config, auth=AuthConfig(True, ("one", "two"))))

    kept = (config.data_dir / "admin-token").read_text().strip()
    assert all(accounts.knows(token) for token in ("one", "two", kept))
    assert not accounts.knows("three")


def test_a_token_of_the_environment_replaces_the_kept_one(config: Config) -> None:
    accounts = Accounts.of(replace(config, auth=AuthConfig(True), admin_token="given"))

    assert accounts.knows("given")
    assert not (config.data_dir / "admin-token").exists()


def test_no_token_is_held_in_clear(config: Config) -> None:
    accounts = Accounts.of(replace(config, auth=AuthConfig(True, ("hunter2",))))

    assert "hunter2" not in repr(accounts)


def test_a_session_stands_for_a_valid_token() -> None:
    session = ACCOUNTS.session_of("first")

    assert "first" not in session
    assert ACCOUNTS.allows_session(session)
    assert not ACCOUNTS.allows_session("")
    assert not ACCOUNTS.allows_session(tokens.digest("wrong").hex())
    with pytest.raises(Unauthenticated, match="not a valid token"):
        ACCOUNTS.session_of("wrong")


def test_a_session_ends_with_its_token() -> None:
    session = ACCOUNTS.session_of("first")

    assert not replace(ACCOUNTS, digests=(tokens.digest("other"),)).allows_session(session)
    assert replace(ACCOUNTS, enabled=False).allows_session("")
