"""docs/cli.md lists every command and option as the program has them; `pytest --update-golden` writes it anew."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cli.main import casemate

PAGE = Path(__file__).parents[2] / "docs/cli.md"
MARK = "<!-- From here on made from the program: .venv/bin/pytest tests/style/test_cli_page.py --update-golden -->\n"


def commands(
    command: click.Command, context: click.Context
) -> Iterator[tuple[click.Command, click.Context]]:
    """A command and all below it, in the order of their names."""
    if context.parent is not None:
        yield command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, click.Context(below, info_name=name, parent=context))


def section(command: click.Command, context: click.Context) -> str:
    """One command's part of the page."""
    usage = " ".join(command.collect_usage_pieces(context))
    # click marks with \b what must not be wrapped anew.
    text = inspect.cleandoc(command.help or "").partition("\f")[0].replace("\b\n", "")
    parts = [f"### `{context.command_path}`", f"`{context.command_path} {usage}`", text]
    rows = [row for each in command.params if (row := option(each, context))]
    if rows:
        parts.append("\n".join(["| option | |", "|---|---|", *rows]))
    return "\n\n".join(part for part in parts if part) + "\n"


def option(parameter: click.Parameter, context: click.Context) -> str:
    """One line of the table; empty for arguments and hidden options."""
    record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
    if record is None:
        return ""
    name, text = (part.replace("|", "\\|") for part in record)
    return f"| `{name}` | {text} |"


def made() -> str:
    context = click.Context(casemate, info_name="casemate")
    return "\n".join(section(*each) for each in commands(casemate, context))


def test_the_page_lists_every_command_and_option(request: pytest.FixtureRequest) -> None:
    head, mark, listed = PAGE.read_text().partition(MARK)
    if request.config.getoption("--update-golden"):
        PAGE.write_text(f"{head}{MARK}\n{made()}")
        return

    assert mark
    assert listed == "\n" + made()


def test_every_command_and_every_option_says_what_it_is_for() -> None:
    context = click.Context(casemate, info_name="casemate")
    silent = []
    for command, inner in commands(casemate, context):
        options = [each for each in command.params if isinstance(each, click.Option)]
        silent += [
            f"{inner.command_path} {each.opts[0]}"
            for each in options
            if not each.help and not each.hidden
        ]
        if not command.help:
            silent.append(inner.command_path)

    assert silent == []
