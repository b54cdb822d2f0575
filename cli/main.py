"""The click group `casemate`; each command's module is imported when that command is called."""

from __future__ import annotations

import importlib
import sys

import click

from cli.terminal import plain
from core.errors import CasemateError

# Command -> module and short help: listing them imports none of them.  The module has a click command of
# the same name (with _ for -).
COMMANDS = {
    "agent": ("cli.agent", "Run the guest agent outside of a guest."),
    "check-config": ("cli.host", "Read a configuration file without starting anything."),
    "db": ("cli.db", "The database."),
    "doctor": ("cli.host", "Say what this host can and cannot do."),
    "image": ("cli.image", "Guest OS images."),
    "serve": ("cli.serve", "Run the service in the foreground."),
    "up": ("cli.up", "Build an image, run the service and show a confidential VM."),
    "vm": ("cli.vm", "Virtual machines."),
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
            importlib.import_module(COMMANDS[cmd_name][0]), cmd_name.replace("-", "_")
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in sorted(COMMANDS)])


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
