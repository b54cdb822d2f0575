"""Waiting for a VM to boot: its steps as they come, and why it did not when it did not."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from cli.terminal import Steps, say, shown
from core.errors import CasemateError

if TYPE_CHECKING:
    from cli.client import Client

# An emulated guest on a busy machine takes minutes.
BOOT_S = 600.0
LOOK_S = 0.3
CONSOLE_LINES = 15
# Scripts can tell a VM that is there and did not boot from a refusal.
BOOT_FAILED = 3

WAIT = click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Show the boot until the app runs."
)


def watch(client: Client, vm_id: str, *, within_s: float = BOOT_S) -> None:
    """Shows each step of a boot until the app runs; ends the program with 3 when it does not."""
    steps, deadline = Steps(), time.monotonic() + within_s
    try:
        while time.monotonic() < deadline:
            info = client.info(vm_id)
            why = _failure(info)
            if why:
                break
            steps.show(info["boot_progress"] or info["status"])
            # An image that tells no progress has none to wait for.
            if info["boot_progress"] in ("done", "N/A"):
                return
            time.sleep(LOOK_S)
        else:
            why = f"the boot was not done within {within_s:.0f} s; it may still go on"
    finally:
        steps.end()
    _say_why(client, vm_id, why)
    sys.exit(BOOT_FAILED)


def _failure(info: dict[str, Any]) -> str:
    if info["boot_error"]:
        return str(info["boot_error"])
    if info["status"] in ("running", "starting"):
        return ""
    return f"the VM is {info['status']}"


def _say_why(client: Client, vm_id: str, why: str) -> None:
    say(f"casemate: the VM did not boot: {why}")
    try:
        console = client.follow(f"/logs?id={vm_id}&lines={CONSOLE_LINES}")
        text = "".join(shown(console, keep_colour=False))
    except CasemateError:
        return  # a removed VM has no console
    click.echo("".join(f"    {line}\n" for line in text.splitlines()), err=True, nl=False)
