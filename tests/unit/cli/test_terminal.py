from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.terminal import Steps, plain, print_table, shown

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\x00\u202eleft"


def test_plain_text_stays_and_controls_become_spaces() -> None:
    assert plain("grüße\tan\r\nalle") == "grüße an  alle"
    assert not set(plain(HOSTILE)) & set("\x1b\x07\x9b\x00\u202e")


def test_a_log_keeps_its_lines_and_tabs() -> None:
    assert "".join(shown(["a\r\nb\tc\n"], keep_colour=False)) == "a\nb\tc\n"


def test_a_log_keeps_colours_and_nothing_else_when_asked() -> None:
    pieces = ["\x1b[31mred\x1b[0m \x1b[2Jgone\x1b]52;c;x\x07"]

    text = "".join(shown(pieces, keep_colour=True))

    assert text == "\x1b[31mred\x1b[0m  [2Jgone ]52;c;x "


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_colour_that_comes_in_two_pieces_is_one(cut: int) -> None:
    text = "\x1b[1;31mred"

    assert "".join(shown([text[:cut], text[cut:]], keep_colour=True)) == text


@given(st.lists(st.text(alphabet="\x1b[]0;1mHJ\x07\r\nab\x9b"), max_size=8), st.booleans())
def test_no_pieces_bring_another_sequence_to_the_terminal(pieces: list[str], colour: bool) -> None:
    text = "".join(shown(pieces, keep_colour=colour))

    for sequence in text.split("\x1b")[1:]:
        assert colour
        assert sequence.lstrip("[0123456789;").startswith("m")
    assert not set(text) & set("\x07\r\x9b")


def test_a_table_is_as_wide_as_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("ID", "NAME"), [("1", "a\x1b[2Jb"), ("22222", "c")])

    assert capsys.readouterr().out == "ID     NAME\n1      a [2Jb\n22222  c\n"


def test_steps_off_a_terminal_are_lines_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps()
    for step in ("booting", "booting", "booting", "done"):
        steps.show(step)
    steps.end()

    lines = capsys.readouterr().err.splitlines()
    assert [line.split("s  ")[1] for line in lines] == ["booting", "done"]


def test_steps_on_a_terminal_share_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    steps = Steps()
    for step in ("booting", "booting", "do\x1bne"):
        steps.show(step)
    steps.end()

    written = capsys.readouterr().err
    assert written.count("\n") == 2
    assert written.count("\r") == 3
    assert "do ne" in written
