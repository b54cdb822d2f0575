from __future__ import annotations

import stat
from pathlib import Path

from accounts import tokens


def test_a_token_has_256_random_bits_and_says_whose_it_is() -> None:
    made = {tokens.make() for _ in range(50)}

    assert len(made) == 50
    assert all(token.startswith("cm_") and len(token) == 3 + 43 for token in made)


def test_a_digest_is_among_those_that_have_it() -> None:
    known = [tokens.digest("a"), tokens.digest("b")]

    assert tokens.is_among(tokens.digest("a"), known)
    assert tokens.is_among(tokens.digest("b"), known)
    assert not tokens.is_among(tokens.digest("c"), known)
    assert not tokens.is_among(b"", known)
    assert not tokens.is_among(tokens.digest("a"), [])


def test_any_text_of_a_header_has_a_digest() -> None:
    assert len(tokens.digest("\xff\udcff")) == 32


def test_the_administrators_token_is_made_once_and_closed_to_others(tmp_path: Path) -> None:
    token = tokens.admin_token(tmp_path, "")

    assert tokens.admin_token(tmp_path, "") == token
    assert (tmp_path / "admin-token").read_text() == f"{token}\n"
    assert stat.S_IMODE((tmp_path / "admin-token").stat().st_mode) == 0o600


def test_a_given_token_is_not_written_down(tmp_path: Path) -> None:
    assert tokens.admin_token(tmp_path, "given") == "given"
    assert list(tmp_path.iterdir()) == []


def test_the_key_of_sessions_is_another_secret(tmp_path: Path) -> None:
    key = tokens.session_key(tmp_path)

    assert key == tokens.session_key(tmp_path) != tokens.admin_token(tmp_path, "")
    assert stat.S_IMODE((tmp_path / "session-key").stat().st_mode) == 0o600
