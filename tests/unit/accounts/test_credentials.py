from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounts.credentials import Credentials


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer first",
        "bearer first",
        "Bearer  first ",
        basic("first:"),
        basic(":first"),
        basic("first"),
        basic("first:").replace("Basic", "BASIC"),
    ],
)
def test_a_token_is_read_in_every_documented_form(authorization: str) -> None:
    assert Credentials.of(authorization) == Credentials(("first",), None)


def test_a_password_may_be_a_token_or_that_of_the_user() -> None:
    assert Credentials.of(basic("anybody:sécond")) == Credentials(
        ("sécond",), ("anybody", "sécond")
    )


def test_tokens_from_elsewhere_come_after_that_of_the_header() -> None:
    assert Credentials.of("Bearer a", "", "b", "c").tokens == ("a", "b", "c")
    assert Credentials.of("", "b").tokens == ("b",)


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "first",
        "Token first",
        "Basic",
        "Basic ",
        "Basic first",
        "Basic \xe9\xff",
        f"Basic {base64.b64encode(bytes([255, 254])).decode()}",
        basic(":"),
        "\xff\xfe",
    ],
)
def test_anything_else_is_no_credential(authorization: str) -> None:
    assert Credentials.of(authorization) == Credentials()


@given(st.text(st.characters(max_codepoint=255)))
def test_any_header_is_read_and_never_breaks(authorization: str) -> None:
    for header in (authorization, f"Bearer {authorization}", f"Basic {authorization}"):
        assert all(Credentials.of(header).tokens)


def test_credentials_are_not_shown_by_repr() -> None:
    assert "hunter2" not in repr(Credentials.of(basic("hunter2:hunter2"), "hunter2"))
