"""Whether a promise is called kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import report
from tests.bench.report import Line, Promise


def _line(samples: list[float], peer: list[float], promise: Promise) -> Line:
    return Line("P0", "a figure", "ms", samples, promise, "a peer", peer)


def test_a_limit_is_the_peer_times_a_factor_plus_a_constant() -> None:
    promise = Promise(factor=1.5, plus=60)

    assert promise.limit(100) == 210
    assert promise.holds(210, 100)
    assert not promise.holds(211, 100)
    assert promise.text("ms") == "<= 1.5 x + 60 ms"


def test_a_throughput_must_not_fall_below_its_limit() -> None:
    promise = Promise(factor=0.5, at_least=True)

    assert promise.holds(500, 1000)
    assert not promise.holds(499, 1000)
    assert promise.text("req/s") == ">= 0.5 x"


def test_a_promise_that_holds_in_the_median_and_not_in_the_slower_half_is_missed() -> None:
    steady = _line([1, 1, 1, 1, 1], [1, 1, 1, 1, 1], Promise(factor=1.3))
    shaky = _line([1, 1, 1, 9, 9], [1, 1, 1, 1, 1], Promise(factor=1.3))

    assert steady.is_kept is True
    assert shaky.figure == 1
    assert shaky.is_kept is False


def test_the_slower_half_of_a_throughput_is_the_lower_one() -> None:
    line = _line([900, 900, 900, 100, 100], [1000] * 5, Promise(factor=0.5, at_least=True))

    assert line.figure == 900
    assert line.is_kept is False


def test_a_round_that_was_slow_for_both_does_not_break_a_ratio() -> None:
    line = _line([10, 10, 10, 30, 30], [10, 10, 10, 30, 30], Promise(factor=1.3))

    assert line.is_kept is True


def test_what_was_not_measured_is_not_kept() -> None:
    assert Line("P0", "not measured", "", [], Promise()).is_kept is False


def test_a_line_without_a_promise_is_neither_kept_nor_missed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [
        Line("P0", "told", "ms", [1.0]),
        Line("P1", "kept", "ms", [1.0], Promise(plus=2)),
        Line("P2", "missed", "ms", [3.0], Promise(plus=2)),
    ]

    report.show(lines)

    assert capsys.readouterr().out.splitlines()[-1] == "promises kept 1/2"


def test_a_line_taken_under_load_is_marked() -> None:
    quiet = Line("P0", "a", "ms", [1.0], load=(1.0, 4.0))
    busy = Line("P0", "a", "ms", [1.0], load=(1.0, 4.1))

    assert not quiet.is_noisy
    assert busy.is_noisy
    assert "noisy" in busy.cells()[-1]


def test_the_file_has_every_sample(tmp_path: Path) -> None:
    path = tmp_path / "build" / "bench.json"

    report.write(path, [_line([1.0, 2.0], [3.0, 4.0], Promise(factor=1))], seconds=1)

    (line,) = json.loads(path.read_text())["lines"]
    assert line["samples"] == [1.0, 2.0]
    assert line["peer_samples"] == [3.0, 4.0]
    assert line["ratio"] == pytest.approx(1.5 / 3.5)
    assert line["kept"] is True
