"""Faults of single rows."""

from __future__ import annotations

import pytest

from runs.mishaps import Mishaps


def fail(row_id: str, why: str) -> None:
    raise ValueError(why)


def pass_by(row_id: str) -> str:
    return row_id


def test_a_fault_ends_its_step_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    mishaps = Mishaps()

    for _ in range(3):
        assert mishaps.guarded(fail, "row", "broken") is None
    assert mishaps.guarded(pass_by, "row") == "row"

    (record,) = caplog.records
    assert record.getMessage() == "fail row failed and will be tried again"
    assert record.exc_info is not None


def test_another_row_and_another_reason_are_told_too(caplog: pytest.LogCaptureFixture) -> None:
    mishaps = Mishaps()

    for row_id, why in (("a", "x"), ("b", "x"), ("a", "y")):
        mishaps.guarded(fail, row_id, why)

    assert len(caplog.records) == 3


def test_a_fault_that_was_gone_is_told_again(caplog: pytest.LogCaptureFixture) -> None:
    mishaps, broken = Mishaps(), [True, False, True]

    def step(row_id: str) -> None:
        if broken.pop():
            raise ValueError(row_id)

    for _ in range(3):
        mishaps.guarded(step, "row")

    assert len(caplog.records) == 2


def test_rows_that_are_no_more_are_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    mishaps = Mishaps()
    mishaps.guarded(fail, "gone", "x")

    mishaps.keep(["other"])
    mishaps.guarded(fail, "gone", "x")

    assert len(caplog.records) == 2
