from __future__ import annotations

import pytest

from attest.errors import Malformed, Mismatch, NotGenuine, Refused, VerificationError
from core.errors import status_of


@pytest.mark.parametrize("kind", [Malformed, Mismatch, NotGenuine, Refused])
def test_every_kind_is_a_verification_error_that_answers_400(
    kind: type[VerificationError],
) -> None:
    error = kind("the reason")

    assert isinstance(error, VerificationError)
    assert status_of(error) == 400
    assert error.message == "the reason"
