from __future__ import annotations

from dataclasses import replace

import pytest

from accounts.roles import OPERATOR, ProjectRole


@pytest.mark.parametrize(
    ("role", "may"),
    [
        (ProjectRole.ADMIN, {"admin", "manager", "user"}),
        (ProjectRole.MANAGER, {"manager", "user"}),
        (ProjectRole.USER, {"user"}),
    ],
)
def test_a_role_covers_those_that_may_do_less(role: ProjectRole, may: set[str]) -> None:
    assert {each for each in ProjectRole if role.covers(each)} == may


def test_a_caller_does_not_show_what_a_credential_is_kept_by() -> None:
    assert "digest" not in repr(replace(OPERATOR, digest=b"x"))
