"""What every SSH login of a run's VM becomes: a shell, or the caller's command, in the environment of the job.

Started by sshd (ForceCommand) with the path of the landing that guest/job_ssh.py wrote.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from guest.job_room import LENT, LIBRARIES, SFTP, Account, entrance

# Of a container: its best shell.
_ANY_SHELL = "if command -v bash >/dev/null; then exec bash -l; else exec sh -l; fi"
# The guest's own program, with the guest's libraries: ld.so(8).
_LOADER = f"{LENT}/x86_64-linux-gnu/ld-linux-x86-64.so.2"
_LENT_SFTP = [
    _LOADER, "--library-path", f"{LENT}/x86_64-linux-gnu", SFTP.replace(LIBRARIES, LENT, 1),
]  # fmt: skip


def plan(
    landing: Mapping[str, Any], command: str | None, *, on_terminal: bool
) -> tuple[list[str], dict[str, str]]:
    """The argument vector and the environment of a login; `command` is None for an interactive one."""
    if landing["prefix"]:
        shell = ["sh", "-c", _ANY_SHELL if command is None else command]
        run = _LENT_SFTP if command == SFTP else shell
        options = ["--interactive", *(["--tty"] if on_terminal else [])]
        *first, last = landing["prefix"]
        return [*first, *options, last, *run], dict(landing["env"])
    shell = ["/bin/bash", "-l"] if command is None else ["/bin/bash", "-c", command]
    return shell, dict(landing["env"])


def main() -> None:
    """Becomes the login; does not return."""
    with open(sys.argv[1]) as file:
        landing = json.load(file)
    argv, env = plan(
        landing, os.environ.get("SSH_ORIGINAL_COMMAND"), on_terminal="SSH_TTY" in os.environ
    )
    for name in ("TERM", "SSH_CLIENT", "SSH_CONNECTION", "SSH_TTY"):
        if name in os.environ:
            env[name] = os.environ[name]
    if account := landing["account"]:
        entrance(landing["root"], Account(**account), landing["folder"])()
    os.execvpe(argv[0], argv, env)


if __name__ == "__main__":
    main()
