"""The click group `casemate`; each command's module is imported when that command is called."""

from __future__ import annotations

import importlib
import sys

import click

from cli.terminal import plain
from core.errors import CasemateError

# Command -> module; the module has a click command of the same name (with _ for -).
COMMANDS = {
    "agent": "cli.agent",
    "check-config": "cli.host",
    "db": "cli.db",
    "doctor": "cli.host",
    "image": "cli.image",
    "serve": "cli.serve",
    "up": "cli.up",
    "vm": "cli.vm",
}


class Lazy(click.Group):
    """A group whose commands cost nothing until they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands by name."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(
            importlib.import_module(COMMANDS[cmd_name]), cmd_name.replace("-", "_")
        )
        return command


@click.group(cls=Lazy)
@click.version_option(package_name="casemate")
def casemate() -> None:
    """Confidential VMs for people who own one server."""


def main() -> None:
    """The console script: refusals become one line on standard error and exit code 1."""
    try:
        casemate()
    except CasemateError as error:
        click.echo("casemate: " + "\n".join(map(plain, error.message.splitlines())), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
