"""The click group `casemate`; each command's module is imported when that command is called."""

from __future__ import annotations

import importlib
import sys

import click
from click.shell_completion import CompletionItem

from cli.terminal import plain
from core.errors import CasemateError

# Command -> module and short help: listing them imports none of them.  The module has a click command of
# the same name (with _ for -).
COMMANDS = {
    "agent": ("cli.agent", "Run the guest agent outside of a guest."),
    "artifacts": ("cli.artifacts", "The registry of builds by which VMs are recognised."),
    "backup": ("cli.backup", "Save VMs, accounts and keys into one file."),
    "apply": ("cli.apply", "Submit a run, or make a fleet, that a file describes."),
    "attach": ("cli.attach", "Connect to a run: its ports, its shell, its output."),
    "check-config": ("cli.host", "Read a configuration file without starting anything."),
    "completion": ("cli.completion", "Print what makes a shell complete the command line."),
    "db": ("cli.db", "The database."),
    "delete": ("cli.apply", "Delete a run or a fleet that a file describes."),
    "doctor": ("cli.host", "Say what this host can and cannot do."),
    "event": ("cli.event", "What happened in a project of runs."),
    "fleet": ("cli.fleet", "Pools of VMs for runs."),
    "image": ("cli.image", "Guest OS images."),
    "kms": ("cli.kms", "Run the key service, or change whom its policy file allows."),
    "logs": ("cli.run", "The output of a run."),
    "measure": ("cli.measure", "What a TEE measures of a VM that runs an image."),
    "offer": ("cli.offer", "The sizes that runs can have."),
    "project": ("cli.project", "Projects and their members."),
    "ps": ("cli.run", "List runs."),
    "restore": ("cli.backup", "Make a data directory from a backup."),
    "run": ("cli.run", "What was submitted as a run."),
    "serve": ("cli.host", "Run the service in the foreground."),
    "stop": ("cli.run", "End a run."),
    "token": ("cli.token", "Tokens of users."),
    "up": ("cli.up", "Build an image, run the service and show a confidential VM."),
    "user": ("cli.user", "Users of this service."),
    "verify": ("cli.verify", "Verify the evidence of a VM."),
    "vm": ("cli.vm", "Virtual machines."),
}
INTERRUPTED = 130


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

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """What a shell offers; click's own way would import every command for its help."""
        named = [
            CompletionItem(name, help=COMMANDS[name][1])
            for name in sorted(COMMANDS)
            if name.startswith(incomplete)
        ]
        return named + click.Command.shell_complete(self, ctx, incomplete)


@click.group(cls=Lazy)
@click.version_option(package_name="casemate")
def casemate() -> None:
    """Confidential VMs for people who own one server."""


def main() -> None:
    """The console script: refusals become one line on standard error and a code, never a traceback.

    1: refused or failed; 2: a wrong command line; 130: interrupted.
    """
    try:
        code = casemate(standalone_mode=False)
    except CasemateError as error:
        _fail("\n".join(map(plain, error.message.splitlines())))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            sys.exit(INTERRUPTED)
        _fail("nothing was done")
    except OSError as error:
        # A file that cannot be read, a full disk: the operator's to mend, not ours.
        _fail(plain(str(error)))
    sys.exit(code if isinstance(code, int) else 0)


def _fail(text: str) -> None:
    click.echo(f"casemate: {text}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
