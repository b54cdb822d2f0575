"""Times as text and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runs import moments


@given(st.integers(0, 4_000_000_000_000_000))
def test_a_time_comes_back_to_the_microsecond(moment: int) -> None:
    assert moments.microseconds(moments.written(moment)) == moment


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000),
        ("1970-01-01T00:00:01", 1_000_000),
        ("1970-01-01T01:00:00.000001+01:00", 1),
        ("tomorrow", None),
        ("", None),
        ("0001-01-01T00:00:00+23:00", None),
    ],
)
def test_a_time_without_zone_is_utc(text: str, moment: int | None) -> None:
    found = moments.microseconds(text)

    assert found == moment or (moment is None and found is not None and found < 0)


def test_milliseconds_are_written_alike() -> None:
    assert moments.of_ms(1) == "1970-01-01T00:00:00.001000Z"
    assert moments.maybe(None) is None
